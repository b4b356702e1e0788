/* Memory whose pages are still missing after the resume: it does not compress, and bulk is held back. */
#ifndef MISSING_H
#define MISSING_H

#include "check.h"

#define PAGES 3072UL
#define LENGTH (PAGES * PAGE)
#define WORDS (PAGE / 8)

static inline void missing_fill_page(void *memory, size_t page, uint64_t seed) {
    uint64_t *words = (uint64_t *)((char *)memory + page * PAGE);
    for (size_t i = 0; i < WORDS; i++)
        words[i] = check_tag(page * WORDS + i, seed);
}

static inline char *missing_map(uint64_t seed) {
    char *memory = check_map(LENGTH);
    for (size_t page = 0; page < PAGES; page++)
        missing_fill_page(memory, page, seed);
    return memory;
}

/* A page that stands at `memory + place`, and was filled as page `page`. */
static inline void missing_check_page(const char *name, const char *memory, size_t place, size_t page,
                                      uint64_t seed) {
    const uint64_t *words = (const uint64_t *)(memory + place * PAGE);
    for (size_t i = 0; i < WORDS; i += 37)
        CHECK(words[i] == check_tag(page * WORDS + i, seed), "%s: page %zu is not what was written", name,
              page);
    CHECK(words[WORDS - 1] == check_tag(page * WORDS + WORDS - 1, seed), "%s: the end of page %zu changed",
          name, page);
}

static inline void missing_check(const char *name, const char *memory, size_t first, size_t count,
                                 uint64_t seed) {
    for (size_t page = first; page < first + count; page++)
        missing_check_page(name, memory, page, page, seed);
}

static inline void missing_wait_child(pid_t child) {
    int status = 0;
    SYS(waitpid(child, &status, 0));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
        _exit(1); /* It has written its reason. */
    CHECK(status == 0, "a child ended with %#x", (unsigned)status);
}

#endif
