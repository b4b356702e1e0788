#include "pager/memory_source.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct memory_source {
    struct lm_page_source source;
    uint32_t space;
    uint64_t start, end;
    const char *content;
    struct lm_request *requests; /* those that are not answered yet, the oldest first */
    size_t count, capacity;
    uint64_t at; /* so far the oldest is answered */
    _Atomic bool ended;
};

/* The descriptor is readable, to whoever waits for it. */
static void wake(struct memory_source *self) {
    uint64_t one = 1;
    ssize_t written;
    do
        written = write(self->source.descriptor, &one, sizeof one);
    while (written < 0 && errno == EINTR);
}

static int request(struct lm_page_source *source, const struct lm_request *requests, size_t count) {
    struct memory_source *self = (struct memory_source *)source;
    if (atomic_load(&self->ended))
        return -EPIPE;
    if (self->count + count > self->capacity) {
        size_t capacity = 2 * (self->count + count);
        struct lm_request *more = realloc(self->requests, capacity * sizeof *more);
        if (!more)
            return -ENOMEM;
        self->requests = more;
        self->capacity = capacity;
    }
    if (!self->count)
        self->at = requests[0].address;
    memcpy(self->requests + self->count, requests, count * sizeof *requests);
    self->count += count;
    wake(self);
    return 0;
}

static int receive(struct lm_page_source *source, bool first, bool wait) {
    struct memory_source *self = (struct memory_source *)source;
    uint64_t woken;
    for (;;) {
        struct pollfd event = {.fd = source->descriptor, .events = POLLIN};
        if (atomic_load(&self->ended))
            return -EPIPE;
        if (read(source->descriptor, &woken, sizeof woken) < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (self->count || !wait)
            return self->count ? 0 : -EAGAIN;
        if (!poll(&event, 1, LM_LOOK_MS))
            return -EAGAIN;
    }
}

/* The kind of the page at the address: LM_FRAME_RAW, LM_FRAME_ZERO or LM_FRAME_ABSENT. */
static uint8_t kind_at(const struct memory_source *self, uint32_t space, uint64_t address) {
    static const char zeros[LM_PAGE_SIZE];
    if (space != self->space || address < self->start || address >= self->end)
        return LM_FRAME_ABSENT;
    return memcmp(self->content + (address - self->start), zeros, LM_PAGE_SIZE) ? LM_FRAME_RAW
                                                                                : LM_FRAME_ZERO;
}

/* The frame of the pages from `at` on that are of one kind, at most `most`, up to `end`. */
static void fill(const struct memory_source *self, const struct lm_request *request, uint64_t at,
                 uint64_t end, uint32_t most, struct lm_frame *frame, const void **data) {
    uint8_t kind = kind_at(self, request->space, at);
    uint32_t pages = 1;
    while (pages < most && at + pages * LM_PAGE_SIZE < end &&
           kind_at(self, request->space, at + pages * LM_PAGE_SIZE) == kind)
        pages++;
    *frame = (struct lm_frame){
        .kind = kind, .space = request->space, .address = at, .pages = pages, .id = request->id};
    *data = NULL;
    if (kind == LM_FRAME_RAW) {
        frame->length = pages * LM_PAGE_SIZE;
        *data = self->content + (at - self->start);
    }
}

/* The next absent stretch of what the request is about, then the end. */
static bool fill_map(struct memory_source *self, const struct lm_request *request, uint64_t end,
                     struct lm_frame *frame, const void **data) {
    while (self->at < end) {
        fill(self, request, self->at, end, request->pages, frame, data);
        self->at += (uint64_t)frame->pages * LM_PAGE_SIZE;
        if (frame->kind == LM_FRAME_ABSENT)
            return false;
    }
    *frame = (struct lm_frame){.kind = LM_FRAME_END, .id = request->id};
    *data = NULL;
    return true;
}

static int next(struct lm_page_source *source, struct lm_frame *frame, const void **data) {
    struct memory_source *self = (struct memory_source *)source;
    if (!self->count)
        return -EAGAIN;
    const struct lm_request *request = &self->requests[0];
    uint64_t end = request->address + (uint64_t)request->pages * LM_PAGE_SIZE;
    bool last = true;
    if (request->kind == LM_REQUEST_PING) {
        *frame = lm_frame_pong();
        *data = NULL;
    } else if (request->kind == LM_REQUEST_MAP) {
        last = fill_map(self, request, end, frame, data);
    } else {
        /* The page of a fault goes first and alone. */
        bool alone = request->kind == LM_REQUEST_FAULT && self->at == request->address;
        fill(self, request, self->at, end, alone ? 1 : LM_FRAME_PAGES, frame, data);
        self->at += (uint64_t)frame->pages * LM_PAGE_SIZE;
        last = self->at >= end;
    }
    if (last) {
        frame->flags = request->kind == LM_REQUEST_PING ? 0 : LM_FRAME_LAST;
        self->count--;
        memmove(self->requests, self->requests + 1, self->count * sizeof *self->requests);
        self->at = self->count ? self->requests[0].address : 0;
    }
    return 0;
}

static bool holds(const struct lm_page_source *source) {
    return ((const struct memory_source *)source)->count != 0;
}

static bool pending(const struct lm_page_source *source) {
    return false;
}

static void end(struct lm_page_source *source) {
    struct memory_source *self = (struct memory_source *)source;
    atomic_store(&self->ended, true);
    wake(self);
}

static void destroy(struct lm_page_source *source) {
    struct memory_source *self = (struct memory_source *)source;
    if (source->descriptor >= 0)
        close(source->descriptor);
    free(self->requests);
    free(self);
}

static const struct lm_page_source_operations operations = {.request = request,
                                                            .receive = receive,
                                                            .next = next,
                                                            .holds = holds,
                                                            .pending = pending,
                                                            .shutdown = end,
                                                            .close = destroy};

int lm_memory_source_create(uint32_t space, uint64_t start, uint64_t length, const void *content,
                            struct lm_page_source **source) {
    if (start % LM_PAGE_SIZE || length % LM_PAGE_SIZE)
        return -EINVAL;
    struct memory_source *self = calloc(1, sizeof *self);
    if (!self)
        return -ENOMEM;
    self->source.operations = &operations;
    self->source.descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->space = space;
    self->start = start;
    self->end = start + length;
    self->content = content;
    if (self->source.descriptor < 0) {
        int error = -errno;
        destroy(&self->source);
        return error;
    }
    *source = &self->source;
    return 0;
}
