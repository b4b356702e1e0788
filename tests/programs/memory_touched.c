/*
 * feature: threads that write and check memory at random before, during and after the move, a tag in every
 *          page
 * timing: writes faster than a busy machine sends are no pre-copy any more
 */
#include "check.h"

#define THREADS 4
#define PAGES 8192UL

/* Every thread has pages of its own, and knows how often it wrote each. */
struct toucher {
    uint64_t *memory;
    uint32_t version[PAGES];
    uint64_t seed;
    volatile uint64_t touches;
};

/* Fewer than PAGES where a second argument says so. */
static size_t pages = PAGES;
static volatile bool stop;

static uint64_t tag(const struct toucher *toucher, size_t page) {
    return check_tag(page, toucher->seed + toucher->version[page] * 1000003u);
}

static void *touch(void *argument) {
    struct toucher *toucher = argument;
    uint64_t random = toucher->seed;
    while (!stop) {
        random = check_tag(random, 17);
        size_t page = random % pages, word = random / PAGES % (PAGE / 8);
        uint64_t *place = toucher->memory + page * PAGE / 8;
        if (toucher->version[page] == 0)
            CHECK(place[word] == 0, "page %zu, never written, is not zero", page);
        else
            CHECK(place[word] == tag(toucher, page), "page %zu is not what version %u was", page,
                  toucher->version[page]);
        if (random >> 62 == 0) {
            toucher->version[page]++;
            for (size_t i = 0; i < PAGE / 8; i++)
                place[i] = tag(toucher, page);
        }
        toucher->touches++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    static struct toucher touchers[THREADS];
    pthread_t threads[THREADS];
    check_start(argc, argv);
    if (argc > 2)
        pages = strtoul(argv[2], NULL, 10);
    CHECK(pages > 0 && pages <= PAGES, "%zu pages", pages);
    for (int i = 0; i < THREADS; i++) {
        touchers[i].memory = check_map(pages * PAGE);
        touchers[i].seed = (uint64_t)i + 1;
        threads[i] = check_thread(touch, &touchers[i]);
    }
    check_sleep(300);
    check_move();
    uint64_t before[THREADS];
    for (int i = 0; i < THREADS; i++)
        before[i] = touchers[i].touches;
    check_sleep(700);
    stop = true;
    for (int i = 0; i < THREADS; i++) {
        PTHREAD(pthread_join(threads[i], NULL));
        CHECK(touchers[i].touches > before[i], "thread %d stood still", i);
        for (size_t page = 0; page < pages; page++)
            for (size_t word = 0; word < PAGE / 8; word += 100)
                CHECK(touchers[i].memory[page * PAGE / 8 + word] ==
                          (touchers[i].version[page] ? tag(&touchers[i], page) : 0),
                      "page %zu of thread %d is not what version %u was", page, i, touchers[i].version[page]);
    }
    return check_passed();
}
