#include "source_server/pages/sender.h"

#include "source_server/pages/readers.h"
#include "wire/status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int lm_page_sender_init(struct lm_page_sender *sender, uint32_t pages) {
    size_t frame = ZSTD_compressBound(LM_FRAME_PAGES * LM_PAGE_SIZE);
    memset(sender, 0, sizeof *sender);
    sender->packed_size = ((size_t)pages + LM_FRAME_PAGES) * LM_PAGE_SIZE + frame;
    sender->packed = malloc(sender->packed_size);
    sender->compressor = ZSTD_createCCtx();
    if (!sender->packed || !sender->compressor) {
        lm_page_sender_deinit(sender);
        return -ENOMEM;
    }
    ZSTD_CCtx_setParameter(sender->compressor, ZSTD_c_checksumFlag, 1);
    return 0;
}

void lm_page_sender_deinit(struct lm_page_sender *sender) {
    free(sender->packed);
    ZSTD_freeCCtx(sender->compressor);
    sender->packed = NULL;
    sender->compressor = NULL;
}

void lm_page_sender_drop(struct lm_page_sender *sender) {
    sender->count = 0;
    sender->packed_used = 0;
}

int lm_page_sender_pong(struct lm_page_sender *sender) {
    const struct lm_frame pong = lm_frame_pong();
    sender->written_ns = lm_now_ns();
    return lm_channel_write(sender->channel, &pong, sizeof pong);
}

void lm_page_sender_show_life(struct lm_page_sender *sender) {
    /* An error comes again when something is written. */
    if (lm_now_ns() - sender->written_ns > LM_LOOK_MS * 1000000ull)
        (void)lm_page_sender_pong(sender);
}

void lm_page_sender_begin(struct lm_page_sender *sender, uint32_t space, uint32_t id) {
    sender->space = space;
    sender->id = id;
    sender->urgent = false;
}

static int add(struct lm_page_sender *sender, int kind, uint64_t address, uint32_t pages, const void *payload,
               uint32_t length) {
    if (sender->count == LM_SENDER_FRAMES) {
        int error = lm_page_sender_flush(sender, false);
        if (error)
            return error;
    }
    sender->frames[sender->count] = (struct lm_frame){.kind = (uint8_t)kind,
                                                      .space = sender->space,
                                                      .address = address,
                                                      .pages = pages,
                                                      .length = length,
                                                      .id = sender->id};
    sender->parts[2 * sender->count + 1] =
        (struct iovec){.iov_base = (void *)payload, .iov_len = payload ? length : 0};
    sender->count++;
    return 0;
}

/* Compress into the room for payloads. Returns the length, or 0 when it did not shrink. */
static uint32_t pack(struct lm_page_sender *sender, const void *data, uint32_t pages, int level) {
    size_t size = (size_t)pages * LM_PAGE_SIZE;
    uint64_t begin = lm_now_ns();
    ZSTD_CCtx_setParameter(sender->compressor, ZSTD_c_compressionLevel, level);
    size_t length = ZSTD_compress2(sender->compressor, sender->packed + sender->packed_used,
                                   sender->packed_size - sender->packed_used, data, size);
    if (ZSTD_isError(length))
        return 0;
    if (sender->bucket)
        lm_pace_compressed(sender->pace, size, length, lm_now_ns() - begin);
    return length < size ? (uint32_t)length : 0;
}

/* A stretch of pages none of which is zero, as frames. */
static int add_content(struct lm_page_sender *sender, uint64_t address, uint32_t pages, const char *data) {
    uint32_t portion = LM_FRAME_PAGES;
    if (sender->bucket) {
        uint32_t least = 4 * LM_PAGE_SIZE, most = LM_FRAME_PAGES * LM_PAGE_SIZE;
        most = lm_bucket_portion(sender->bucket, least, most);
        portion = lm_yield_portion(sender->yield, least, most) / LM_PAGE_SIZE;
    }
    while (pages) {
        uint32_t step = pages < portion ? pages : portion;
        int level = sender->bucket ? lm_pace_level(sender->pace, &step) : lm_pace_level_urgent(sender->pace);
        /* Make room for the frame and its payload first: a flush frees both. */
        if (sender->count == LM_SENDER_FRAMES ||
            sender->packed_size - sender->packed_used < ZSTD_compressBound(step * LM_PAGE_SIZE)) {
            int error = lm_page_sender_flush(sender, false);
            if (error)
                return error;
        }
        uint32_t length = level ? pack(sender, data, step, level) : 0;
        int error =
            length ? add(sender, LM_FRAME_ZSTD, address, step, sender->packed + sender->packed_used, length)
                   : add(sender, LM_FRAME_RAW, address, step, data, step * LM_PAGE_SIZE);
        if (error)
            return error;
        sender->packed_used += length;
        lm_count(&sender->statistics->pages, step);
        lm_count(&sender->statistics->packed_pages, length ? step : 0);
        lm_count(&sender->statistics->bytes, (uint64_t)step * LM_PAGE_SIZE);
        address += (uint64_t)step * LM_PAGE_SIZE;
        data += (size_t)step * LM_PAGE_SIZE;
        pages -= step;
    }
    return 0;
}

int lm_page_sender_pages(struct lm_page_sender *sender, uint64_t address, uint32_t pages, const void *data) {
    const char *bytes = data;
    for (uint32_t i = 0; i < pages;) {
        uint32_t begin = i;
        bool zero = lm_page_is_zero(bytes + (size_t)i * LM_PAGE_SIZE);
        do
            i++;
        while (i < pages && lm_page_is_zero(bytes + (size_t)i * LM_PAGE_SIZE) == zero);
        uint64_t at = address + (uint64_t)begin * LM_PAGE_SIZE;
        int error = zero ? lm_page_sender_empty(sender, LM_FRAME_ZERO, at, i - begin)
                         : add_content(sender, at, i - begin, bytes + (size_t)begin * LM_PAGE_SIZE);
        if (error)
            return error;
    }
    return 0;
}

int lm_page_sender_empty(struct lm_page_sender *sender, int kind, uint64_t address, uint32_t pages) {
    if (kind == LM_FRAME_ZERO)
        lm_count(&sender->statistics->zero_pages, pages);
    if (kind == LM_FRAME_ABSENT)
        lm_count(&sender->statistics->absent_pages, pages);
    return add(sender, kind, address, pages, NULL, 0);
}

int lm_page_sender_failed(struct lm_page_sender *sender, int error) {
    lm_page_sender_drop(sender);
    int added = add(sender, LM_FRAME_FAILED, 0, 0, NULL, (uint32_t)-error);
    return added ? added : lm_page_sender_flush(sender, true);
}

/* Hold the bulk stream back, in short sleeps, so that it does not sleep through an end. */
static void wait_for_bucket(struct lm_page_sender *sender, uint64_t bytes) {
    uint64_t wait = lm_bucket_take(sender->bucket, bytes);
    while (wait && !atomic_load_explicit(sender->stop, memory_order_relaxed)) {
        uint64_t step = wait < 20000000 ? wait : 20000000;
        struct timespec time = {.tv_sec = 0, .tv_nsec = (long)step};
        nanosleep(&time, NULL);
        wait -= step;
        lm_page_sender_show_life(sender);
    }
}

/* Write frames `from` to `to`, sealed. */
static int write_frames(struct lm_page_sender *sender, int from, int to) {
    uint64_t bytes = 0, waited = sender->channel->waited_ns;
    for (int i = from; i < to; i++) {
        lm_frame_seal(&sender->frames[i]);
        sender->parts[2 * i] =
            (struct iovec){.iov_base = &sender->frames[i], .iov_len = sizeof sender->frames[i]};
        bytes += sizeof sender->frames[i] + sender->parts[2 * i + 1].iov_len;
    }
    if (sender->bucket && !sender->urgent) {
        lm_yield_before_bulk(sender->yield);
        wait_for_bucket(sender, bytes);
    }
    int error = lm_channel_writev(sender->channel, sender->parts + 2 * from, 2 * (to - from));
    if (error)
        return error;
    sender->written_ns = lm_now_ns();
    lm_count(&sender->statistics->wire_bytes, bytes);
    if (sender->bucket) {
        bool had_to_wait = sender->channel->waited_ns != waited;
        lm_pace_written(sender->pace, bytes, lm_channel_unsent(sender->channel), had_to_wait);
        uint64_t link = atomic_load_explicit(&sender->pace->link, memory_order_relaxed);
        __atomic_store_n(&sender->statistics->link_rate, link, __ATOMIC_RELAXED);
    }
    return 0;
}

int lm_page_sender_flush(struct lm_page_sender *sender, bool last) {
    int frames = sender->count, step = frames, error = 0;
    /* Under a limit, write frame by frame, so that a fault's answer never waits behind a burst. */
    if (sender->bucket && !sender->urgent &&
        (atomic_load_explicit(&sender->bucket->rate, memory_order_relaxed) ||
         lm_yield_is_held(sender->yield)))
        step = 1;
    if (last && frames)
        sender->frames[frames - 1].flags |= LM_FRAME_LAST;
    for (int i = 0; i < frames && !error; i += step)
        error = write_frames(sender, i, i + step < frames ? i + step : frames);
    lm_page_sender_drop(sender);
    return error;
}
