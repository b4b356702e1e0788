#include "wire/values.h"

#include <errno.h>

/* One value's head: the bytes of its own that follow it, and the values in it. */
struct head {
    size_t size; /* of the head itself */
    uint64_t bytes;
    uint64_t values;
};

static uint64_t number_at(const unsigned char *at, size_t size) {
    uint64_t number = 0;
    for (size_t i = 0; i < size; i++)
        number = number << 8 | at[i];
    return number;
}

/* The formats of the MessagePack specification (spec.md, "Formats"). */
static int read_head(const unsigned char *at, size_t left, struct head *head) {
    unsigned char byte = at[0];
    *head = (struct head){.size = 1};
    if (byte <= 0x7f || byte >= 0xe0) { /* a small number */
    } else if (byte <= 0x8f) {
        head->values = 2 * (byte & 0x0f);
    } else if (byte <= 0x9f) {
        head->values = byte & 0x0f;
    } else if (byte <= 0xbf) {
        head->bytes = byte & 0x1f;
    } else if (byte == 0xc0 || byte == 0xc2 || byte == 0xc3) { /* nil, false, true */
    } else if (byte >= 0xca && byte <= 0xd3) { /* float 32 and 64, uint and int of 8 to 64 bits */
        static const unsigned char sizes[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
        head->bytes = sizes[byte - 0xca];
    } else {
        /* A length of 1, 2 or 4 bytes: bin, str; of 2 or 4: array, map. */
        size_t size = byte >= 0xc4 && byte <= 0xc6   ? (size_t)1 << (byte - 0xc4)
                      : byte >= 0xd9 && byte <= 0xdb ? (size_t)1 << (byte - 0xd9)
                      : byte >= 0xdc && byte <= 0xdf ? (byte & 1 ? 4 : 2)
                                                     : 0;
        if (!size || left < 1 + size)
            return -EPROTO;
        uint64_t length = number_at(at + 1, size);
        head->size += size;
        if (byte < 0xdc)
            head->bytes = length;
        else
            head->values = byte < 0xde ? length : 2 * length;
    }
    return 0;
}

int64_t lm_count_values(const void *data, size_t length, uint64_t most) {
    const unsigned char *at = data, *end = at + length;
    uint64_t due = 1, count = 0;
    while (due && count <= most) {
        struct head head;
        if (at == end || read_head(at, (size_t)(end - at), &head))
            return -EPROTO;
        at += head.size;
        if (head.bytes > (uint64_t)(end - at))
            return -EPROTO;
        at += head.bytes;
        due += head.values - 1;
        count++;
        /* Each value that is due takes a byte at least. */
        if (due > (uint64_t)(end - at))
            return -EPROTO;
    }
    return !due && at != end ? -EPROTO : (int64_t)count;
}
