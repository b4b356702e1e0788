#define _GNU_SOURCE
#include "pager/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LEAST_CLASS = 6, PAGE_CLASS = 12 };

_Static_assert(sizeof(struct lm_ledger_head) <= LM_LEDGER_SPACES_AT, "the head is the first page");

int lm_ledger_map(struct lm_ledger *ledger, int fd) {
    uint64_t layout = 0;

    *ledger = (struct lm_ledger){.fd = fd, .used = LM_LEDGER_REST_AT};
    if (pread(fd, &layout, sizeof layout, 0) != sizeof layout || layout != LM_LEDGER_LAYOUT)
        return -EPROTO;
    void *base = mmap(NULL, LM_LEDGER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    ledger->base = base;
    return 0;
}

void lm_ledger_unmap(struct lm_ledger *ledger) {
    for (size_t i = 0; i < LM_LEDGER_CLASSES; i++)
        free(ledger->freed[i].places);
    if (ledger->base)
        munmap(ledger->base, LM_LEDGER_SIZE);
    *ledger = (struct lm_ledger){.fd = -1};
}

struct lm_ledger *lm_ledger_create(void) {
    const struct lm_ledger_head head = {.layout = LM_LEDGER_LAYOUT, .predecessor = -1};
    struct lm_ledger *ledger = calloc(1, sizeof *ledger);
    if (!ledger)
        return NULL;
    int fd = memfd_create("lm-ledger", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)LM_LEDGER_SIZE) || pwrite(fd, &head, sizeof head, 0) != sizeof head ||
        lm_ledger_map(ledger, fd)) {
        if (fd >= 0)
            close(fd);
        free(ledger);
        return NULL;
    }
    return ledger;
}

void lm_ledger_destroy(struct lm_ledger *ledger, bool kept) {
    if (!ledger)
        return;
    int fd = ledger->fd;
    lm_ledger_unmap(ledger);
    if (!kept)
        close(fd);
    free(ledger);
}

static unsigned class_of(uint64_t size) {
    unsigned found = LEAST_CLASS;
    while ((UINT64_C(1) << found) < size)
        found++;
    return found;
}

uint64_t lm_ledger_take(struct lm_ledger *ledger, uint64_t size) {
    if (!ledger)
        return (uint64_t)(uintptr_t)calloc(1, size);
    unsigned class = class_of(size);
    if (class >= LM_LEDGER_CLASSES)
        return 0;
    struct lm_ledger_freed *freed = &ledger->freed[class];
    if (freed->free) {
        uint64_t place = freed->places[--freed->free];
        freed->places[freed->free] = freed->places[--freed->count];
        /* Pages were given back to the kernel. */
        if (class < PAGE_CLASS)
            memset(ledger->base + place, 0, UINT64_C(1) << class);
        return place;
    }
    uint64_t whole = UINT64_C(1) << class,
             mask = (class < PAGE_CLASS ? whole : UINT64_C(1) << PAGE_CLASS) - 1;
    uint64_t place = (ledger->used + mask) & ~mask;
    if (place + whole > LM_LEDGER_SIZE)
        return 0;
    ledger->used = place + whole;
    return place;
}

void lm_ledger_give(struct lm_ledger *ledger, uint64_t place, uint64_t size) {
    if (!ledger) {
        free((void *)(uintptr_t)place);
        return;
    }
    struct lm_ledger_freed *freed = &ledger->freed[class_of(size)];
    if (freed->count == freed->capacity) {
        size_t capacity = freed->capacity ? 2 * freed->capacity : 16;
        uint64_t *places = realloc(freed->places, capacity * sizeof *places);
        /* Without it the memory is lost to us, no more. */
        if (!places)
            return;
        freed->places = places;
        freed->capacity = capacity;
    }
    freed->places[freed->count++] = place;
}

/* What was given back is not part of what counts any more. */
static void free_given(struct lm_ledger *ledger) {
    for (unsigned class = LEAST_CLASS; class < LM_LEDGER_CLASSES; class++) {
        struct lm_ledger_freed *freed = &ledger->freed[class];
        for (; freed->free < freed->count; freed->free++)
            if (class >= PAGE_CLASS)
                fallocate(ledger->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (off_t)freed->places[freed->free], (off_t)(UINT64_C(1) << class));
    }
}

struct lm_ledger_head *lm_ledger_head(const struct lm_ledger *ledger) {
    return (struct lm_ledger_head *)ledger->base;
}

const struct lm_ledger_commit *lm_ledger_committed(const struct lm_ledger *ledger) {
    const struct lm_ledger_head *head = lm_ledger_head(ledger);
    return &head->commits[__atomic_load_n(&head->current, __ATOMIC_ACQUIRE) & 1];
}

struct lm_ledger_space *lm_ledger_space(const struct lm_ledger *ledger, uint32_t place) {
    return (struct lm_ledger_space *)(ledger->base + LM_LEDGER_SPACES_AT) + place;
}

static unsigned counting_copy(const struct lm_ledger_space *space, uint64_t stamp) {
    const struct lm_ledger_copy *copies = space->copies;
    return copies[1].stamp > stamp || copies[0].stamp > copies[1].stamp ? copies[0].stamp > stamp : 1;
}

const struct lm_ledger_copy *lm_ledger_ranges(const struct lm_ledger *ledger, uint32_t place) {
    const struct lm_ledger_space *space = lm_ledger_space(ledger, place);
    uint64_t stamp = lm_ledger_committed(ledger)->stamp;
    const struct lm_ledger_copy *copy = &space->copies[counting_copy(space, stamp)];
    return copy->stamp && copy->stamp <= stamp ? copy : NULL;
}

struct lm_ledger_range *lm_ledger_write(struct lm_ledger *ledger, uint32_t place, uint64_t count) {
    struct lm_ledger_space *space = lm_ledger_space(ledger, place);
    uint64_t stamp = lm_ledger_committed(ledger)->stamp;
    struct lm_ledger_copy *copy = &space->copies[!counting_copy(space, stamp)];
    if (count > copy->capacity || !copy->capacity) {
        uint64_t capacity = count < 32 ? 32 : 2 * count;
        uint64_t ranges = lm_ledger_take(ledger, capacity * sizeof(struct lm_ledger_range));
        if (!ranges)
            return NULL;
        if (copy->capacity)
            lm_ledger_give(ledger, copy->ranges, copy->capacity * sizeof(struct lm_ledger_range));
        copy->ranges = ranges;
        copy->capacity = capacity;
    }
    __atomic_store_n(&copy->stamp, stamp + 1, __ATOMIC_RELEASE);
    copy->count = count;
    return lm_ledger_at(ledger, copy->ranges);
}

void lm_ledger_commit(struct lm_ledger *ledger, uint64_t applied, uint32_t spaces, uint32_t children) {
    struct lm_ledger_head *head = lm_ledger_head(ledger);
    struct lm_ledger_commit *next = &head->commits[!(head->current & 1)];
    *next = (struct lm_ledger_commit){.stamp = lm_ledger_committed(ledger)->stamp + 1,
                                      .applied = applied,
                                      .spaces = spaces,
                                      .children = children};
    __atomic_store_n(&head->current, !(head->current & 1), __ATOMIC_SEQ_CST);
    free_given(ledger);
}

static struct lm_ledger_slot *slot_at(const unsigned char *base, uint64_t place) {
    return (struct lm_ledger_slot *)(base + LM_LEDGER_SLOTS_AT) + place % LM_LEDGER_SLOTS;
}

const struct lm_ledger_slot *lm_ledger_slot(const unsigned char *base, uint64_t place) {
    const struct lm_ledger_slot *slot = slot_at(base, place);
    return slot->sequence == place + 1 && slot->messages[0].event ? slot : NULL;
}

int lm_ledger_read(unsigned char *base, uint64_t place, int userfault) {
    struct lm_ledger_slot *slot = slot_at(base, place);
    /* Its pages are there after this: a copy by the kernel that failed would lose the messages. */
    __atomic_store_n(&slot->sequence, 0, __ATOMIC_SEQ_CST);
    memset(slot->messages, 0, sizeof slot->messages);
    slot->descriptor = userfault;
    __atomic_store_n(&slot->sequence, place + 1, __ATOMIC_SEQ_CST);
    ssize_t size = read(userfault, slot->messages, sizeof slot->messages);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    return (int)((size_t)size / sizeof slot->messages[0]);
}

int lm_ledger_note(struct lm_ledger *ledger, const void *note, size_t length) {
    struct lm_ledger_head *head = lm_ledger_head(ledger);
    unsigned next = !(head->current_note & 1);
    uint64_t place = lm_ledger_take(ledger, length ? length : 1);
    if (!place)
        return -ENOMEM;
    memcpy(lm_ledger_at(ledger, place), note, length);
    if (head->notes[next].place)
        lm_ledger_give(ledger, head->notes[next].place,
                       head->notes[next].length ? head->notes[next].length : 1);
    head->notes[next] = (struct lm_ledger_note){.place = place, .length = length};
    __atomic_store_n(&head->current_note, next, __ATOMIC_SEQ_CST);
    return 0;
}
