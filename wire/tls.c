#define _GNU_SOURCE
#include "wire/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* TLS_AES_128_GCM_SHA256 (RFC 8446, appendix B.4), and after how many records its key is exchanged for the next: no more
 * than 2^24.5 are allowed under one (section 5.5). */
static const unsigned char CIPHER[] = {0x13, 0x01};
enum { RECORDS_OF_A_KEY = 1 << 23 };
static const char EXPORTED[] = "EXPORTER-live-migration";
static const char RECORDS[] = "EXPORTER-live-migration-records";

struct lm_tls_context {
    SSL_CTX *ssl;
    bool certified;
};

struct lm_tls {
    atomic_int holders;
    int fd;
    bool certified;
    bool listens;
    pthread_mutex_t lock; /* of what follows */
    SSL *ssl;
    BIO_METHOD *method;
    uint8_t identity[LM_TLS_IDENTITY_BYTES];
    uint8_t key[LM_TLS_KEY_BYTES];
    bool deaf;                  /* what comes is not taken yet */
    bool more;                  /* for the socket: what is written is not the end of it */
    bool half;                  /* a record is written in part */
    uint32_t records;           /* written under the key in use */
    int no_reading, no_writing; /* why it has ended in a direction, -errno; a last word may still come in */
};

static int take(BIO *bio, char *buffer, int size) {
    struct lm_tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (tls->deaf) {
        BIO_set_retry_read(bio);
        return -1;
    }
    ssize_t got;
    do
        got = recv(tls->fd, buffer, (size_t)size, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        BIO_set_retry_read(bio);
    return (int)got;
}

static int give(BIO *bio, const char *buffer, int size) {
    struct lm_tls *tls = BIO_get_data(bio);
    ssize_t done;
    BIO_clear_retry_flags(bio);
    do
        done = send(tls->fd, buffer, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL | (tls->more ? MSG_MORE : 0));
    while (done < 0 && errno == EINTR);
    if (done < 0 && errno == EAGAIN)
        BIO_set_retry_write(bio);
    return (int)done;
}

static long control(BIO *bio, int command, long number, void *pointer) {
    return command == BIO_CTRL_FLUSH;
}

static int as_error(int known) {
    unsigned long code = ERR_peek_last_error();
    return known ? 0 : ERR_GET_LIB(code) == ERR_LIB_SYS ? -ERR_GET_REASON(code) : -EINVAL;
}

int lm_tls_context_create(const char *certificate, const char *key, const char *authority,
                          struct lm_tls_context **context) {
    struct lm_tls_context *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    ERR_clear_error();
    SSL_CTX *ssl = made->ssl = SSL_CTX_new(TLS_method());
    made->certified = certificate != NULL;
    bool whole = ssl && SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) &&
                 SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) &&
                 SSL_CTX_set_ciphersuites(ssl, "TLS_AES_128_GCM_SHA256") &&
                 SSL_CTX_set1_groups_list(ssl, "X25519") && SSL_CTX_set_num_tickets(ssl, 0) &&
                 SSL_CTX_set_session_id_context(ssl, CIPHER, sizeof CIPHER);
    if (whole && certificate)
        whole = SSL_CTX_use_certificate_chain_file(ssl, certificate) == 1 &&
                SSL_CTX_use_PrivateKey_file(ssl, key, SSL_FILETYPE_PEM) == 1 &&
                SSL_CTX_check_private_key(ssl) == 1 && SSL_CTX_load_verify_file(ssl, authority) == 1;
    int error = as_error(whole);
    if (error) {
        lm_tls_context_destroy(made);
        return error;
    }
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF |
                                 SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    /* Without a certificate that counts nobody is let in who has not got the key. */
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    *context = made;
    return 0;
}

void lm_tls_context_destroy(struct lm_tls_context *context) {
    if (context)
        SSL_CTX_free(context->ssl);
    free(context);
}

/* The key as libssl takes one from outside: a session that could be resumed. */
static SSL_SESSION *session_of(SSL *ssl, const struct lm_tls *tls) {
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, CIPHER);
    SSL_SESSION *session = SSL_SESSION_new();
    if (cipher && session && SSL_SESSION_set1_master_key(session, tls->key, sizeof tls->key) &&
        SSL_SESSION_set1_id_context(session, CIPHER, sizeof CIPHER) &&
        SSL_SESSION_set_cipher(session, cipher) && SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int use_key(SSL *ssl, const EVP_MD *hash, const unsigned char **identity, size_t *length,
                   SSL_SESSION **session) {
    struct lm_tls *tls = SSL_get_app_data(ssl);
    *session = session_of(ssl, tls);
    *identity = tls->identity;
    *length = sizeof tls->identity;
    return *session != NULL;
}

static int find_key(SSL *ssl, const unsigned char *identity, size_t length, SSL_SESSION **session) {
    struct lm_tls *tls = SSL_get_app_data(ssl);
    *session = NULL;
    if (length == sizeof tls->identity && !CRYPTO_memcmp(identity, tls->identity, length))
        *session = session_of(ssl, tls);
    return 1;
}

int lm_tls_create(struct lm_tls_context *context, int fd, bool listening, const uint8_t *identity,
                  const uint8_t *key, struct lm_tls **tls) {
    struct lm_tls *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    atomic_init(&made->holders, 1);
    pthread_mutex_init(&made->lock, NULL);
    memcpy(made->identity, identity, sizeof made->identity);
    memcpy(made->key, key, sizeof made->key);
    made->deaf = !listening;
    made->certified = context->certified;
    made->listens = listening;
    made->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int error = made->fd < 0 ? -errno : 0;
    made->ssl = SSL_new(context->ssl);
    made->method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "lm_tls");
    BIO *bio = made->method ? BIO_new(made->method) : NULL;
    if (!error && (!made->ssl || !bio))
        error = -ENOMEM;
    if (error) {
        BIO_free(bio);
        lm_tls_put(made);
        return error;
    }
    BIO_meth_set_read(made->method, take);
    BIO_meth_set_write(made->method, give);
    BIO_meth_set_ctrl(made->method, control);
    BIO_set_data(bio, made);
    BIO_set_init(bio, 1);
    SSL_set_bio(made->ssl, bio, bio);
    SSL_set_app_data(made->ssl, made);
    if (listening)
        SSL_set_accept_state(made->ssl);
    else
        SSL_set_connect_state(made->ssl);
    if (!context->certified && listening)
        SSL_set_psk_find_session_callback(made->ssl, find_key);
    else if (!context->certified)
        SSL_set_psk_use_session_callback(made->ssl, use_key);
    *tls = made;
    return 0;
}

struct lm_tls *lm_tls_get(struct lm_tls *tls) {
    if (tls)
        atomic_fetch_add(&tls->holders, 1);
    return tls;
}

void lm_tls_put(struct lm_tls *tls) {
    if (!tls || atomic_fetch_sub(&tls->holders, 1) != 1)
        return;
    SSL_free(tls->ssl);
    BIO_meth_free(tls->method);
    if (tls->fd >= 0)
        close(tls->fd);
    pthread_mutex_destroy(&tls->lock);
    OPENSSL_cleanse(tls->key, sizeof tls->key);
    free(tls);
}

/* What somebody else has left in this thread's queue would be taken for ours. To clear it costs more than to look. */
static void forget_errors(void) {
    if (ERR_peek_error())
        ERR_clear_error();
}

/* What a call of libssl that did not do its work has met, which may be the end of a direction, or of both. Lock held. */
static int error_of(struct lm_tls *tls, int done, int *direction, int broken) {
    int system = errno;
    switch (SSL_get_error(tls->ssl, done)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        *direction = -EPIPE;
        break;
    case SSL_ERROR_SYSCALL:
        *direction = system ? -system : -EPIPE;
        break;
    default:
        *direction = tls->no_reading = tls->no_writing = broken;
    }
    ERR_clear_error();
    return *direction;
}

/* Who is wrong in a handshake: one that has no key that is known, or one that speaks something else. */
static int wrong_peer(void) {
    switch (ERR_GET_REASON(ERR_peek_error())) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_BAD_RECORD_TYPE:
    case SSL_R_UNEXPECTED_MESSAGE:
        return -EPROTO;
    default:
        return -EACCES;
    }
}

int lm_tls_handshake(struct lm_tls *tls) {
    pthread_mutex_lock(&tls->lock);
    int error = tls->no_reading;
    if (!error) {
        forget_errors();
        errno = 0;
        int done = SSL_do_handshake(tls->ssl);
        tls->deaf = false;
        if (done != 1)
            error = error_of(tls, done, &tls->no_reading, wrong_peer());
        else if (!tls->certified && !SSL_session_reused(tls->ssl))
            error = tls->no_reading = tls->no_writing = -EACCES;
    }
    pthread_mutex_unlock(&tls->lock);
    return error;
}

int lm_tls_export(struct lm_tls *tls, uint8_t *bytes) {
    pthread_mutex_lock(&tls->lock);
    int known = SSL_export_keying_material(tls->ssl, bytes, LM_TLS_KEY_BYTES, EXPORTED, sizeof EXPORTED - 1,
                                           NULL, 0, 0);
    pthread_mutex_unlock(&tls->lock);
    return known == 1 ? 0 : -EINVAL;
}

ssize_t lm_tls_read(struct lm_tls *tls, void *buffer, size_t size) {
    size_t got = 0;
    pthread_mutex_lock(&tls->lock);
    int error = tls->no_reading;
    if (!error) {
        forget_errors();
        errno = 0;
        int done = SSL_read_ex(tls->ssl, buffer, size, &got);
        if (done != 1)
            error = error_of(tls, done, &tls->no_reading, -EBADMSG);
    }
    pthread_mutex_unlock(&tls->lock);
    return error ? error : (ssize_t)got;
}

ssize_t lm_tls_write(struct lm_tls *tls, const void *buffer, size_t size, bool more) {
    size_t sent = 0;
    pthread_mutex_lock(&tls->lock);
    int error = tls->no_writing;
    if (!error) {
        forget_errors();
        errno = 0;
        if (!tls->half && tls->records++ == RECORDS_OF_A_KEY) {
            tls->records = 0;
            SSL_key_update(tls->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
        }
        tls->more = more;
        int done =
            SSL_write_ex(tls->ssl, buffer, size < LM_TLS_RECORD_BYTES ? size : LM_TLS_RECORD_BYTES, &sent);
        tls->more = false;
        if (done != 1)
            error = error_of(tls, done, &tls->no_writing, -EBADMSG);
        tls->half = error == -EAGAIN;
    }
    pthread_mutex_unlock(&tls->lock);
    return error ? error : (ssize_t)sent;
}

size_t lm_tls_pending(const struct lm_tls *tls) {
    return (size_t)SSL_pending(tls->ssl);
}

bool lm_tls_listens(const struct lm_tls *tls) {
    return tls->listens;
}

int lm_tls_keys(struct lm_tls *tls, bool listeners, uint64_t epoch, uint8_t *bytes, size_t size) {
    unsigned char which[1 + sizeof epoch] = {listeners};
    for (unsigned i = 0; i < sizeof epoch; i++)
        which[1 + i] = (unsigned char)(epoch >> 8 * i);
    pthread_mutex_lock(&tls->lock);
    int known = SSL_export_keying_material(tls->ssl, bytes, size, RECORDS, sizeof RECORDS - 1, which,
                                           sizeof which, 1);
    pthread_mutex_unlock(&tls->lock);
    return known == 1 ? 0 : -EINVAL;
}

int lm_tls_hand_over(struct lm_tls *tls) {
    pthread_mutex_lock(&tls->lock);
    int error = tls->no_reading ? tls->no_reading : tls->no_writing;
    if (!error && (!SSL_is_init_finished(tls->ssl) || SSL_has_pending(tls->ssl) || tls->half))
        error = -EPROTO;
    if (!error)
        tls->no_reading = tls->no_writing = -EALREADY;
    pthread_mutex_unlock(&tls->lock);
    return error;
}
