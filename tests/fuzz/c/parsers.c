#include "kernel/memory/maps.h"
#include "tests/fuzz/c/fuzz.h"
#include "wire/page_stream.h"
#include "wire/values.h"

#include <errno.h>
#include <string.h>
#include <zstd.h>

enum { INBOX = LM_HEADER_SIZE + 2 * LM_FRAME_PAGES * LM_PAGE_SIZE, MOST_VALUES = 1 << 12 };

/* Read every byte, so that a sanitizer sees it. */
static void touch(const void *data, size_t size) {
    static volatile uint8_t sum;
    for (size_t i = 0; i < size; i++)
        sum += ((const uint8_t *)data)[i];
}

static void take_frames(struct lm_inbox *inbox, int *error) {
    static unsigned char unpacked[LM_FRAME_PAGES * LM_PAGE_SIZE];
    struct lm_frame frame;
    const void *payload = NULL;
    while (!(*error = lm_inbox_next(inbox, &frame, &payload))) {
        uint64_t bytes = (uint64_t)frame.pages * LM_PAGE_SIZE;
        PROMISE(frame.address % LM_PAGE_SIZE == 0 && frame.address + bytes <= LM_ADDRESS_END);
        PROMISE(lm_frame_payload(&frame) <= LM_FRAME_PAGES * LM_PAGE_SIZE);
        touch(payload, lm_frame_payload(&frame));
        if (frame.kind == LM_FRAME_ZSTD) {
            PROMISE(bytes <= sizeof unpacked);
            ZSTD_decompress(unpacked, bytes, payload, frame.length);
        }
    }
}

/* The first byte of each piece tells its length, and whether to put right the check of a frame that begins with it:
 * nobody guesses that. */
int fuzz_frames(const uint8_t *data, size_t size) {
    static struct lm_inbox inbox;
    int error = -EAGAIN;
    PROMISE(inbox.buffer || lm_inbox_init(&inbox, INBOX) == 0);
    inbox.begin = inbox.end = 0;
    while (size > 1 && error == -EAGAIN) {
        size_t length = data[0] & 0x7f, room;
        bool sealed = data[0] & 0x80;
        unsigned char piece[LM_HEADER_SIZE + 0x7f] = {0};
        length = sealed ? length + LM_HEADER_SIZE : length + 1;
        length = length < size - 1 ? length : size - 1;
        memcpy(piece, data + 1, length);
        if (sealed && length >= LM_HEADER_SIZE) {
            struct lm_frame frame;
            memcpy(&frame, piece, sizeof frame);
            lm_frame_seal(&frame);
            memcpy(piece, &frame, sizeof frame);
        }
        void *to = lm_inbox_room(&inbox, &room);
        PROMISE(room > 0);
        length = length < room ? length : room;
        memcpy(to, piece, length);
        lm_inbox_filled(&inbox, length);
        take_frames(&inbox, &error);
        PROMISE(error != 0);
        data += 1 + length;
        size -= 1 + length;
    }
    return 0;
}

int fuzz_requests(const uint8_t *data, size_t size) {
    for (; size > sizeof(struct lm_request); data += 1 + sizeof(struct lm_request)) {
        struct lm_request request;
        memcpy(&request, data + 1, sizeof request);
        if (data[0] & 1)
            lm_request_seal(&request);
        if (lm_request_check(&request) == 0) {
            uint64_t bytes = ((uint64_t)request.pages + request.reach) * LM_PAGE_SIZE;
            PROMISE(request.kind >= LM_REQUEST_FAULT && request.kind <= LM_REQUEST_PING && request.id);
            PROMISE(request.address % LM_PAGE_SIZE == 0);
            PROMISE((request.pages == 0) == (request.kind == LM_REQUEST_PING));
            PROMISE(request.address + bytes <= LM_ADDRESS_END);
            PROMISE(request.kind == LM_REQUEST_MAP || request.pages <= LM_RUN_PAGES);
        }
        size -= 1 + sizeof request;
    }
    return 0;
}

int fuzz_values(const uint8_t *data, size_t size) {
    int64_t count = lm_count_values(data, size, MOST_VALUES);
    PROMISE(count == -EPROTO || (count > 0 && count <= MOST_VALUES + 1 && (uint64_t)count <= size));
    /* Nothing shorter is a value if this is one. */
    if (count > 0 && count <= MOST_VALUES)
        PROMISE(lm_count_values(data, size - 1, MOST_VALUES) == -EPROTO);
    return 0;
}

int fuzz_maps(const uint8_t *data, size_t size) {
    /* A copy without anything behind it. */
    char *text = malloc(size ? size : 1);
    PROMISE(text);
    if (size)
        memcpy(text, data, size);
    size_t capacity = lm_maps_bound(text, size);
    PROMISE(capacity <= size + 1);
    uint64_t *columns = calloc(capacity ? capacity : 1, LM_MAP_COLUMNS * sizeof *columns);
    PROMISE(columns);
    long count = lm_maps_parse(text, size, columns, capacity);
    PROMISE(count <= (long)capacity);
    for (long i = 0; i < count; i++) {
        const uint64_t *row = columns + i * LM_MAP_COLUMNS;
        PROMISE(row[LM_MAP_PERMISSIONS_AT] + 4 <= size);
        PROMISE(row[LM_MAP_DEVICE_AT] + row[LM_MAP_DEVICE_LENGTH] <= size);
        PROMISE(row[LM_MAP_PATH_AT] + row[LM_MAP_PATH_LENGTH] <= size);
        PROMISE(row[LM_MAP_FLAGS_AT] + row[LM_MAP_FLAGS_LENGTH] <= size);
    }
    free(columns);
    free(text);
    return 0;
}
