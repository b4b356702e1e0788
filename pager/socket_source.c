#include "pager/socket_source.h"

#include <errno.h>
#include <stdlib.h>
#include <zstd.h>

enum {
    FAULT_INBOX = 512 * 1024,
    BULK_INBOX = 1024 * 1024,
    UNPACKED = LM_FRAME_PAGES * LM_PAGE_SIZE,
    FIRST_READ = LM_HEADER_SIZE + LM_PAGE_SIZE
};

struct socket_source {
    struct lm_page_source source;
    struct lm_channel channel;
    struct lm_inbox inbox;
    ZSTD_DCtx *decompressor;
    unsigned char *unpacked; /* the content of one frame */
};

static int request(struct lm_page_source *source, const struct lm_request *requests, size_t count) {
    struct socket_source *self = (struct socket_source *)source;
    return lm_channel_write(&self->channel, requests, count * sizeof *requests);
}

static int receive(struct lm_page_source *source, bool first, bool wait) {
    struct socket_source *self = (struct socket_source *)source;
    size_t size;
    void *room = lm_inbox_room(&self->inbox, &size);
    if (first && size > FIRST_READ)
        size = FIRST_READ;
    ssize_t got;
    do {
        int error = wait ? lm_channel_wait(&self->channel, LM_LOOK_MS) : 0;
        if (error)
            return error;
        got = lm_channel_read(&self->channel, room, size, false);
        /* A part of a record is no silence. */
    } while (wait && got == -EAGAIN);
    if (got < 0)
        return (int)got;
    lm_inbox_filled(&self->inbox, (size_t)got);
    return 0;
}

static int next(struct lm_page_source *source, struct lm_frame *frame, const void **data) {
    struct socket_source *self = (struct socket_source *)source;
    const void *payload;
    int error = lm_inbox_next(&self->inbox, frame, &payload);
    if (error)
        return error;
    *data = frame->kind == LM_FRAME_RAW ? payload : NULL;
    if (frame->kind != LM_FRAME_ZSTD)
        return 0;
    size_t size = (size_t)frame->pages * LM_PAGE_SIZE;
    if (ZSTD_decompressDCtx(self->decompressor, self->unpacked, size, payload, frame->length) != size)
        return -EPROTO;
    *data = self->unpacked;
    return 0;
}

static bool holds(const struct lm_page_source *source) {
    return lm_inbox_held(&((const struct socket_source *)source)->inbox) != 0;
}

static bool pending(const struct lm_page_source *source) {
    return lm_channel_pending(&((const struct socket_source *)source)->channel);
}

static void end(struct lm_page_source *source) {
    lm_channel_shutdown(&((struct socket_source *)source)->channel);
}

static void destroy(struct lm_page_source *source) {
    struct socket_source *self = (struct socket_source *)source;
    lm_channel_deinit(&self->channel);
    lm_inbox_deinit(&self->inbox);
    ZSTD_freeDCtx(self->decompressor);
    free(self->unpacked);
    free(self);
}

static const struct lm_page_source_operations operations = {.request = request,
                                                            .receive = receive,
                                                            .next = next,
                                                            .holds = holds,
                                                            .pending = pending,
                                                            .shutdown = end,
                                                            .close = destroy};

int lm_socket_source_create(const struct lm_link *link, uint32_t role, const uint8_t *session,
                            uint32_t attempt, struct lm_page_source **source) {
    struct socket_source *self = calloc(1, sizeof *self);
    if (!self)
        return -ENOMEM;
    self->source.operations = &operations;
    self->decompressor = ZSTD_createDCtx();
    self->unpacked = aligned_alloc(LM_PAGE_SIZE, UNPACKED);
    int error = self->decompressor && self->unpacked ? 0 : -ENOMEM;
    if (!error)
        error = lm_inbox_init(&self->inbox, role == LM_ROLE_FAULT ? FAULT_INBOX : BULK_INBOX);
    self->channel.fd = -1;
    if (!error)
        error = lm_channel_init(&self->channel, link, role, session, attempt);
    if (error) {
        destroy(&self->source);
        return error;
    }
    self->source.descriptor = lm_channel_descriptor(&self->channel);
    *source = &self->source;
    return 0;
}
