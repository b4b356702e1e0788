#include "wire/records.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADER = 4,
    TAG = 16,
    KEY = 16,
    NONCE = 12,
    WHOLE = LM_RECORD_EXTRA + LM_RECORD_BYTES,
    /* What is sent, and what is taken in, at once. */
    ROOM = 4 * WHOLE
};

_Static_assert(HEADER + TAG == LM_RECORD_EXTRA, "a record is its header, the text and the tag");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are laid out as they travel");

/* One direction. */
struct way {
    EVP_CIPHER_CTX *cipher;
    struct lm_tls *tls; /* from where the keys come */
    bool listeners;     /* the records of the side that listened */
    uint32_t number;    /* of the next record under the key at hand */
    uint64_t epoch;     /* how many keys there have been */
    int error;          /* after which it is of no use */
    unsigned char nonce[NONCE];
    size_t begin, end; /* [begin, end) of `bytes` are sealed and not sent, or have come and are not opened */
    unsigned char *bytes;
};

struct lm_records {
    struct way out, in;
    size_t text, text_end; /* [text, text_end) of in.bytes are opened and not read */
};

void lm_vector_advance(struct iovec **parts, int *count, size_t done) {
    while (*count && (done || !(*parts)->iov_len)) {
        size_t step = done < (*parts)->iov_len ? done : (*parts)->iov_len;
        (*parts)->iov_base = (char *)(*parts)->iov_base + step;
        (*parts)->iov_len -= step;
        done -= step;
        if (!(*parts)->iov_len) {
            (*parts)++;
            (*count)--;
        }
    }
}

static int take_key(struct way *way, bool seals) {
    unsigned char made[KEY + NONCE];
    int error = lm_tls_keys(way->tls, way->listeners, way->epoch, made, sizeof made);
    if (!error && EVP_CipherInit_ex(way->cipher, EVP_aes_128_gcm(), NULL, made, NULL, seals) != 1)
        error = -ENOMEM;
    memcpy(way->nonce, made + KEY, NONCE);
    OPENSSL_cleanse(made, sizeof made);
    way->number = 0;
    way->epoch++;
    return error;
}

static int begin_way(struct way *way, struct lm_tls *tls, bool listeners, bool seals) {
    way->tls = tls;
    way->listeners = listeners;
    way->cipher = EVP_CIPHER_CTX_new();
    way->bytes = malloc(ROOM);
    return way->cipher && way->bytes ? take_key(way, seals) : -ENOMEM;
}

static void end_way(struct way *way) {
    EVP_CIPHER_CTX_free(way->cipher);
    free(way->bytes);
}

int lm_records_create(struct lm_tls *tls, struct lm_records **records) {
    struct lm_records *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    bool listens = lm_tls_listens(tls);
    int error = begin_way(&made->out, lm_tls_get(tls), listens, true);
    if (!error)
        error = begin_way(&made->in, tls, !listens, false);
    if (!error)
        error = lm_tls_hand_over(tls);
    if (error) {
        lm_records_destroy(made);
        return error;
    }
    *records = made;
    return 0;
}

void lm_records_destroy(struct lm_records *records) {
    if (!records)
        return;
    lm_tls_put(records->out.tls);
    end_way(&records->out);
    end_way(&records->in);
    free(records);
}

/* Begin the next record, whose header is its first bytes: each record has another nonce. */
static int begin_record(struct way *way, bool seals, const unsigned char *header) {
    unsigned char nonce[NONCE];
    int length, error = way->number == LM_RECORDS_OF_A_KEY ? take_key(way, seals) : 0;
    if (error)
        return error;
    memcpy(nonce, way->nonce, NONCE);
    for (unsigned i = 0; i < sizeof way->number; i++)
        nonce[NONCE - 1 - i] ^= (unsigned char)(way->number >> 8 * i);
    way->number++;
    return EVP_CipherInit_ex(way->cipher, NULL, NULL, NULL, nonce, -1) == 1 &&
                   EVP_CipherUpdate(way->cipher, NULL, &length, header, HEADER) == 1
               ? 0
               : -ENOMEM;
}

static int seal_record(struct way *way, struct iovec **parts, int *count, uint32_t size) {
    unsigned char *at = way->bytes + way->end;
    memcpy(at, &size, HEADER);
    int error = begin_record(way, true, at), length;
    at += HEADER;
    for (uint32_t left = size; left && !error;) {
        uint32_t step = (*parts)->iov_len < left ? (uint32_t)(*parts)->iov_len : left;
        if (EVP_EncryptUpdate(way->cipher, at, &length, (*parts)->iov_base, (int)step) != 1)
            error = -ENOMEM;
        at += step;
        left -= step;
        lm_vector_advance(parts, count, step);
    }
    if (!error && (EVP_EncryptFinal_ex(way->cipher, at, &length) != 1 ||
                   EVP_CIPHER_CTX_ctrl(way->cipher, EVP_CTRL_AEAD_GET_TAG, TAG, at) != 1))
        error = -ENOMEM;
    if (!error)
        way->end += LM_RECORD_EXTRA + size;
    return error;
}

int lm_records_seal(struct lm_records *records, struct iovec **parts, int *count) {
    struct way *out = &records->out;
    if (out->begin == out->end)
        out->begin = out->end = 0;
    lm_vector_advance(parts, count, 0);
    while (*count && !out->error && ROOM - out->end >= WHOLE) {
        size_t size = 0;
        for (int i = 0; i < *count && size < LM_RECORD_BYTES; i++)
            size += (*parts)[i].iov_len;
        /* Without its last record's tag a nonce would be used a second time, so an error is for ever. */
        out->error =
            seal_record(out, parts, count, size < LM_RECORD_BYTES ? (uint32_t)size : LM_RECORD_BYTES);
    }
    return out->error;
}

const void *lm_records_sealed(const struct lm_records *records, size_t *size) {
    *size = records->out.end - records->out.begin;
    return records->out.bytes + records->out.begin;
}

void lm_records_sent(struct lm_records *records, size_t count) {
    records->out.begin += count;
}

/* How long the record is that comes next, as it says itself; 0 while that has not come. */
static size_t next_size(const struct way *in) {
    uint32_t size;
    if (in->end - in->begin < HEADER)
        return 0;
    memcpy(&size, in->bytes + in->begin, HEADER);
    return size && size <= LM_RECORD_BYTES ? LM_RECORD_EXTRA + size : SIZE_MAX;
}

void *lm_records_room(struct lm_records *records, size_t wanted, size_t *size) {
    struct way *in = &records->in;
    size_t held = in->end - in->begin, whole = next_size(in);
    if (!held)
        in->begin = in->end = 0;
    else if (ROOM - in->begin < WHOLE) {
        memmove(in->bytes, in->bytes + in->begin, held);
        in->begin = 0;
        in->end = held;
    }
    size_t most = wanted + LM_RECORD_EXTRA > whole ? wanted + LM_RECORD_EXTRA : whole;
    most = most > held ? most - held : HEADER;
    *size = ROOM - in->end < most ? ROOM - in->end : most;
    return in->bytes + in->end;
}

void lm_records_filled(struct lm_records *records, size_t count) {
    records->in.end += count;
}

static int open_record(struct way *in, unsigned char *text, uint32_t size) {
    unsigned char *at = in->bytes + in->begin;
    int error = begin_record(in, false, at), length;
    if (error)
        return error;
    bool genuine = EVP_DecryptUpdate(in->cipher, text, &length, at + HEADER, (int)size) == 1 &&
                   EVP_CIPHER_CTX_ctrl(in->cipher, EVP_CTRL_AEAD_SET_TAG, TAG, at + HEADER + size) == 1 &&
                   EVP_DecryptFinal_ex(in->cipher, text + size, &length) == 1;
    return genuine ? 0 : -EBADMSG;
}

/* What is left of a record that was opened where it lay. */
static ssize_t give_text(struct lm_records *records, void *buffer, size_t size) {
    size_t left = records->text_end - records->text;
    if (size > left)
        size = left;
    memcpy(buffer, records->in.bytes + records->text, size);
    records->text += size;
    return (ssize_t)size;
}

ssize_t lm_records_open(struct lm_records *records, void *buffer, size_t size) {
    struct way *in = &records->in;
    if (records->text != records->text_end)
        return give_text(records, buffer, size);
    size_t whole = next_size(in);
    if (whole == SIZE_MAX)
        in->error = -EBADMSG;
    if (in->error)
        return in->error;
    if (!whole || in->end - in->begin < whole)
        return -EAGAIN;
    uint32_t text = (uint32_t)(whole - LM_RECORD_EXTRA);
    bool direct = size >= text;
    unsigned char *inside = in->bytes + in->begin + HEADER;
    in->error = open_record(in, direct ? buffer : inside, text);
    if (in->error)
        return in->error;
    in->begin += whole;
    if (direct)
        return (ssize_t)text;
    records->text = (size_t)(inside - in->bytes);
    records->text_end = records->text + text;
    return give_text(records, buffer, size);
}

bool lm_records_ready(const struct lm_records *records) {
    size_t whole = next_size(&records->in);
    return records->text != records->text_end ||
           (whole && (whole == SIZE_MAX || records->in.end - records->in.begin >= whole));
}
