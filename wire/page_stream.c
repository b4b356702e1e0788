#include "wire/page_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct lm_request) == LM_HEADER_SIZE, "a request is 32 bytes");
_Static_assert(sizeof(struct lm_frame) == LM_HEADER_SIZE, "a frame is 32 bytes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are laid out as they travel");

enum { PAYLOAD_MAX = LM_FRAME_PAGES * LM_PAGE_SIZE };

/* Not cryptography: it tells a header from bytes that are none. Every step is invertible, so that any single
 * changed byte changes the result. */
static uint32_t mix(const void *header) {
    uint32_t words[7], sum = 0x6c6d7073;
    memcpy(words, header, sizeof words);
    for (int i = 0; i < 7; i++) {
        sum = (sum ^ words[i]) * 0x9e3779b1u;
        sum ^= sum >> 15;
    }
    return sum;
}

void lm_request_seal(struct lm_request *request) {
    request->version = LM_PAGE_STREAM_VERSION;
    request->zero = 0;
    request->check = mix(request);
}

void lm_frame_seal(struct lm_frame *frame) {
    frame->version = LM_PAGE_STREAM_VERSION;
    frame->zero = 0;
    frame->check = mix(frame);
}

struct lm_request lm_request_ping(void) {
    struct lm_request ping = {.kind = LM_REQUEST_PING, .id = 1};
    lm_request_seal(&ping);
    return ping;
}

struct lm_frame lm_frame_pong(void) {
    struct lm_frame pong = {.kind = LM_FRAME_PONG, .id = 1};
    lm_frame_seal(&pong);
    return pong;
}

static bool span_is_sane(uint64_t address, uint64_t pages) {
    return address % LM_PAGE_SIZE == 0 && address < LM_ADDRESS_END &&
           pages <= (LM_ADDRESS_END - address) / LM_PAGE_SIZE;
}

int lm_request_check(const struct lm_request *request) {
    if (request->check != mix(request) || request->zero)
        return -EPROTO;
    if (request->version != LM_PAGE_STREAM_VERSION)
        return -EPROTONOSUPPORT;
    uint32_t most = request->kind == LM_REQUEST_FAULT ? LM_FAULT_PAGES
                    : request->kind == LM_REQUEST_RUN ? LM_RUN_PAGES
                    : request->kind == LM_REQUEST_MAP ? UINT32_MAX
                                                      : 0;
    if (request->kind == LM_REQUEST_PING)
        return !request->pages && !request->address && !request->reach && !request->flags && request->id
                   ? 0
                   : -EPROTO;
    if (!request->pages || request->pages > most || !request->id || request->flags & ~LM_REQUEST_SHARED)
        return -EPROTO;
    return span_is_sane(request->address, (uint64_t)request->pages + request->reach) ? 0 : -EPROTO;
}

int lm_frame_check(const struct lm_frame *frame) {
    if (frame->check != mix(frame) || frame->zero || frame->flags & ~LM_FRAME_LAST)
        return -EPROTO;
    if (frame->version != LM_PAGE_STREAM_VERSION)
        return -EPROTONOSUPPORT;
    if (!span_is_sane(frame->address, frame->pages))
        return -EPROTO;
    bool full = frame->pages && frame->pages <= LM_FRAME_PAGES;
    uint64_t bytes = (uint64_t)frame->pages * LM_PAGE_SIZE;
    switch (frame->kind) {
    case LM_FRAME_RAW:
        return full && frame->length == bytes ? 0 : -EPROTO;
    case LM_FRAME_ZSTD:
        return full && frame->length && frame->length < bytes ? 0 : -EPROTO;
    case LM_FRAME_ZERO:
    case LM_FRAME_ABSENT:
    case LM_FRAME_DISCARD:
    case LM_FRAME_GONE:
    case LM_FRAME_POISON:
        return frame->pages && !frame->length ? 0 : -EPROTO;
    case LM_FRAME_END:
    case LM_FRAME_PONG:
        return !frame->pages && !frame->length && frame->id ? 0 : -EPROTO;
    case LM_FRAME_FAILED:
        return !frame->pages && frame->length && frame->length < 4096 ? 0 : -EPROTO;
    default:
        return -EPROTO;
    }
}

int lm_inbox_init(struct lm_inbox *inbox, size_t size) {
    memset(inbox, 0, sizeof *inbox);
    if (size < LM_HEADER_SIZE + PAYLOAD_MAX)
        return -EINVAL;
    inbox->buffer = malloc(size);
    inbox->size = size;
    return inbox->buffer ? 0 : -ENOMEM;
}

void lm_inbox_deinit(struct lm_inbox *inbox) {
    free(inbox->buffer);
    memset(inbox, 0, sizeof *inbox);
}

void *lm_inbox_room(struct lm_inbox *inbox, size_t *size) {
    size_t held = lm_inbox_held(inbox);
    /* Move only when the frame that has begun could not be completed where it lies: a copy of a quarter MiB
     * at most, once per buffer. */
    if (!held) {
        inbox->begin = inbox->end = 0;
    } else if (inbox->size - inbox->begin < LM_HEADER_SIZE + PAYLOAD_MAX) {
        memmove(inbox->buffer, inbox->buffer + inbox->begin, held);
        inbox->begin = 0;
        inbox->end = held;
    }
    *size = inbox->size - inbox->end;
    return inbox->buffer + inbox->end;
}

void lm_inbox_filled(struct lm_inbox *inbox, size_t count) {
    inbox->end += count;
}

int lm_inbox_next(struct lm_inbox *inbox, struct lm_frame *frame, const void **payload) {
    size_t held = lm_inbox_held(inbox);
    if (held < LM_HEADER_SIZE)
        return -EAGAIN;
    memcpy(frame, inbox->buffer + inbox->begin, LM_HEADER_SIZE);
    int error = lm_frame_check(frame);
    if (error)
        return error;
    size_t whole = LM_HEADER_SIZE + lm_frame_payload(frame);
    if (held < whole)
        return -EAGAIN;
    *payload = inbox->buffer + inbox->begin + LM_HEADER_SIZE;
    inbox->begin += whole;
    return 0;
}

size_t lm_inbox_held(const struct lm_inbox *inbox) {
    return inbox->end - inbox->begin;
}
