/*
 * feature: threads that touch missing pages at random, all at once, the same ones too; new threads
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

#define THREADS 8

static char *memory;

static void *touch(void *argument) {
    uint64_t number = (uintptr_t)argument;
    for (size_t i = 0; i < PAGES; i++) {
        size_t page = check_tag(i, number / 2) % PAGES;
        missing_check_page("at random", memory, page, page, 1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    check_start(argc, argv);
    memory = missing_map(1);
    check_move();
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = check_thread(touch, (void *)i);
    for (int i = 0; i < THREADS; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    missing_check("all", memory, 0, PAGES, 1);
    for (size_t page = 0; page < PAGES; page++)
        missing_fill_page(memory, page, 2);
    missing_check("all, written again", memory, 0, PAGES, 2);
    return check_passed();
}
