/*
 * feature: memory that is written, discarded, moved, mapped anew, protected, grown and shrunk without a pause
 *          before, during and after the move
 * limits: until the next round, memory mapped beside what rounds follow is a mapping of its own, not one with its
 *         neighbour: mremap of both in one call fails meanwhile
 * restore: --bandwidth-limit 60M
 */
#include "check.h"

#include <sys/mman.h>

enum { SLOTS = 48, MOST_PAGES = 640, WORDS = PAGE / 8 };

/* A stretch of memory, and what each of its pages holds: a tag, or 0. Its place stays reserved without it. */
struct slot {
    char *reserved, *memory;
    size_t pages;
    bool shared, unreadable;
    uint64_t tags[MOST_PAGES];
};

static struct slot slots[SLOTS];
static volatile bool stop;
static volatile uint64_t steps;
static uint64_t seed = 42;

static uint64_t next(uint64_t below) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

static void check_page(const struct slot *slot, size_t page) {
    const uint64_t *words = (const uint64_t *)(slot->memory + page * PAGE);
    for (size_t i = 0; i < WORDS; i += WORDS - 1)
        CHECK(words[i] == slot->tags[page], "slot %zu page %zu word %zu is %lx, not %lx",
              (size_t)(slot - slots), page, i, words[i], slot->tags[page]);
}

static void write_page(struct slot *slot, size_t page) {
    uint64_t *words = (uint64_t *)(slot->memory + page * PAGE);
    slot->tags[page] = next(UINT64_MAX) | 1;
    for (size_t i = 0; i < WORDS; i++)
        words[i] = slot->tags[page];
}

static void map_slot(struct slot *slot) {
    slot->pages = 1 + next(MOST_PAGES);
    slot->shared = next(4) == 0;
    slot->unreadable = false;
    slot->memory = slot->reserved;
    int flags = MAP_ANONYMOUS | MAP_FIXED | (slot->shared ? MAP_SHARED : MAP_PRIVATE);
    void *place = mmap(slot->memory, slot->pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(place == slot->memory, "mmap: %s", strerror(errno));
    memset(slot->tags, 0, sizeof slot->tags);
}

static void reserve(const struct slot *slot) {
    void *place = mmap(slot->reserved, 2 * MOST_PAGES * PAGE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    CHECK(place == slot->reserved, "mmap: %s", strerror(errno));
}

static void discard(struct slot *slot) {
    size_t first = next(slot->pages), count = 1 + next(slot->pages - first);
    SYS(madvise(slot->memory + first * PAGE, count * PAGE, MADV_DONTNEED));
    /* Shared memory keeps what it has. */
    if (!slot->shared)
        memset(slot->tags + first, 0, count * sizeof slot->tags[0]);
}

/* Between the two halves of its place. */
static void move_slot(struct slot *slot) {
    char *other = slot->memory == slot->reserved ? slot->reserved + MOST_PAGES * PAGE : slot->reserved;
    size_t size = slot->pages * PAGE;
    CHECK(mremap(slot->memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other, "mremap: %s",
          strerror(errno));
    void *place =
        mmap(slot->memory, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    CHECK(place == slot->memory, "mmap: %s", strerror(errno));
    slot->memory = other;
}

static void shrink(struct slot *slot) {
    size_t pages = 1 + next(slot->pages);
    size_t cut = (slot->pages - pages) * PAGE;
    if (!cut)
        return;
    char *end = slot->memory + pages * PAGE;
    CHECK(mmap(end, cut, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == end,
          "mmap: %s", strerror(errno));
    slot->pages = pages;
}

static void step(void) {
    struct slot *slot = &slots[next(SLOTS)];
    uint64_t what = next(100);
    if (slot->unreadable && what < 95) {
        if (what < 20) {
            SYS(mprotect(slot->memory, slot->pages * PAGE, PROT_READ | PROT_WRITE));
            slot->unreadable = false;
        }
        return;
    }
    if (what < 60)
        write_page(slot, next(slot->pages));
    else if (what < 85)
        check_page(slot, next(slot->pages));
    else if (what < 90)
        discard(slot);
    else if (what < 93)
        move_slot(slot);
    else if (what < 95) {
        SYS(mprotect(slot->memory, slot->pages * PAGE, PROT_NONE));
        slot->unreadable = true;
    } else if (what < 97) {
        reserve(slot);
        map_slot(slot);
    } else if (what < 98)
        shrink(slot);
}

static void *change(void *argument) {
    while (!stop) {
        step();
        /* Not as fast as it can: rounds are to find something that is at rest, too. */
        if (++steps % 64 == 0)
            check_sleep(1);
    }
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    for (int i = 0; i < SLOTS; i++) {
        slots[i].reserved =
            mmap(NULL, 2 * MOST_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(slots[i].reserved != MAP_FAILED, "mmap: %s", strerror(errno));
        map_slot(&slots[i]);
        for (size_t page = 0; page < slots[i].pages; page += 1 + next(2))
            write_page(&slots[i], page);
    }
    pthread_t thread = check_thread(change, NULL);
    check_sleep(100);
    check_move();
    uint64_t before = steps;
    check_sleep(500);
    stop = true;
    PTHREAD(pthread_join(thread, NULL));
    CHECK(steps > before, "nothing went on");
    for (int i = 0; i < SLOTS; i++) {
        SYS(mprotect(slots[i].memory, slots[i].pages * PAGE, PROT_READ));
        for (size_t page = 0; page < slots[i].pages; page++)
            check_page(&slots[i], page);
    }
    return check_passed();
}
