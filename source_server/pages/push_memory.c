#include "source_server/pages/push_memory.h"

#include "wire/page_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* 1 << 21 entries of 32 bytes: 64 MiB for at most 6 GiB of pushed memory. */
enum { SIZE_MAX_ENTRIES = 1 << 21, SIZE_MIN_ENTRIES = 1 << 10 };

int lm_push_memory_init(struct lm_push_memory *memory) {
    memset(memory, 0, sizeof *memory);
    if (getrandom(memory->key, sizeof memory->key, 0) != sizeof memory->key)
        return -errno;
    return 0;
}

void lm_push_memory_deinit(struct lm_push_memory *memory) {
    free(memory->entries);
    memset(memory, 0, sizeof *memory);
}

static uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Two chains of folded multiplications over the words of the page, each with a key of its own. */
static void digest(const struct lm_push_memory *memory, const void *page, uint64_t out[2]) {
    uint64_t one = memory->key[0], two = memory->key[1], words[4];
    const char *bytes = page;
    for (size_t at = 0; at < LM_PAGE_SIZE; at += sizeof words) {
        memcpy(words, bytes + at, sizeof words);
        one = fold(words[0] ^ memory->key[2] ^ one, words[1] ^ memory->key[3]) +
              fold(words[2] ^ one, words[3] ^ memory->key[1]);
        two = fold(words[3] ^ memory->key[0] ^ two, words[0] ^ memory->key[2]) +
              fold(words[1] ^ two, words[2] ^ memory->key[3]);
        one ^= words[0] + (words[2] << 1);
        two ^= words[1] + (words[3] << 1);
    }
    out[0] = fold(one ^ memory->key[3], memory->key[0] | 1);
    out[1] = fold(two ^ memory->key[2], memory->key[1] | 1);
}

/* The entry of a page, or the empty place where it would stand; NULL when there is no table yet. */
static struct lm_push_entry *find(const struct lm_push_memory *memory, uint32_t space, uint64_t address) {
    if (!memory->size)
        return NULL;
    uint64_t page = address / LM_PAGE_SIZE + 1;
    size_t at = (size_t)fold(page ^ memory->key[0], (uint64_t)space * 2 + 0x9e3779b97f4a7c15u);
    for (;; at++) {
        struct lm_push_entry *entry = &memory->entries[at & (memory->size - 1)];
        if (!entry->page || (entry->page == page && entry->space == space))
            return entry;
    }
}

bool lm_push_memory_same(const struct lm_push_memory *memory, uint32_t space, uint64_t address,
                         const void *page) {
    const struct lm_push_entry *entry = find(memory, space, address);
    if (!entry || !entry->page || entry->discarded)
        return false;
    uint64_t now[2];
    digest(memory, page, now);
    return now[0] == entry->digest[0] && now[1] == entry->digest[1];
}

bool lm_push_memory_knows(const struct lm_push_memory *memory, uint32_t space, uint64_t address) {
    const struct lm_push_entry *entry = find(memory, space, address);
    return entry && entry->page;
}

uint64_t lm_push_memory_next(const struct lm_push_memory *memory, uint32_t space, uint64_t start,
                             uint64_t end) {
    /* Looking page by page costs little where the next one is near, and looking through the table where it is far. */
    uint64_t near = start + memory->size / 4 * LM_PAGE_SIZE, lowest = end;
    for (; start < end && start < near; start += LM_PAGE_SIZE)
        if (lm_push_memory_knows(memory, space, start))
            return start;
    for (size_t i = 0; start < end && i < memory->size; i++) {
        const struct lm_push_entry *entry = &memory->entries[i];
        uint64_t address = (entry->page - 1) * LM_PAGE_SIZE;
        if (entry->page && entry->space == space && address >= start && address < lowest)
            lowest = address;
    }
    return lowest;
}

/* Make the table twice as large while three quarters are full. Returns false when it must not grow any more.
 */
static bool make_room(struct lm_push_memory *memory) {
    if (memory->size && memory->used * 4 < memory->size * 3)
        return true;
    size_t size = memory->size ? memory->size * 2 : SIZE_MIN_ENTRIES;
    struct lm_push_entry *entries = size > SIZE_MAX_ENTRIES ? NULL : calloc(size, sizeof *entries);
    if (!entries)
        return false;
    struct lm_push_entry *old = memory->entries;
    size_t old_size = memory->size;
    memory->entries = entries;
    memory->size = size;
    for (size_t i = 0; i < old_size; i++)
        if (old[i].page)
            *find(memory, old[i].space, (old[i].page - 1) * LM_PAGE_SIZE) = old[i];
    free(old);
    return true;
}

void lm_push_memory_keep(struct lm_push_memory *memory, uint32_t space, uint64_t address, const void *page) {
    struct lm_push_entry *entry = find(memory, space, address);
    if (!entry || !entry->page) {
        if (!make_room(memory))
            return;
        entry = find(memory, space, address);
        memory->used++;
    }
    entry->page = address / LM_PAGE_SIZE + 1;
    entry->space = space;
    entry->discarded = 0;
    digest(memory, page, entry->digest);
}

void lm_push_memory_discard(struct lm_push_memory *memory, uint32_t space, uint64_t start, uint64_t end) {
    uint64_t first = start / LM_PAGE_SIZE + 1, last = end / LM_PAGE_SIZE;
    if (last - first < memory->size) {
        for (uint64_t page = first; page <= last; page++) {
            struct lm_push_entry *entry = find(memory, space, (page - 1) * LM_PAGE_SIZE);
            entry->discarded = entry->page != 0;
        }
        return;
    }
    for (size_t i = 0; i < memory->size; i++) {
        struct lm_push_entry *entry = &memory->entries[i];
        if (entry->page >= first && entry->page <= last && entry->space == space)
            entry->discarded = 1;
    }
}
