/*
 * feature: threads caught inside the vdso; the vdso stays at its address
 */
#include "check.h"
#include <sys/auxv.h>
#include <sys/time.h>

static volatile bool stop;
static volatile uint64_t calls[3];

static void *call_on(void *argument) {
    volatile uint64_t *count = argument;
    struct timespec now;
    struct timeval day;
    unsigned processor;
    while (!stop) {
        CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && now.tv_nsec >= 0 && now.tv_nsec < 1000000000,
              "clock_gettime");
        CHECK(gettimeofday(&day, NULL) == 0 && day.tv_sec > 1600000000, "gettimeofday");
        CHECK(getcpu(&processor, NULL) == 0 && processor < 4096, "getcpu: %u", processor);
        (*count)++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    check_start(argc, argv);
    const unsigned char *vdso = (const unsigned char *)getauxval(AT_SYSINFO_EHDR);
    for (int i = 0; i < 3; i++)
        threads[i] = check_thread(call_on, (void *)&calls[i]);
    check_move();
    CHECK(memcmp(vdso, "\177ELF", 4) == 0, "no vdso at %p", (const void *)vdso);
    CHECK((const unsigned char *)getauxval(AT_SYSINFO_EHDR) == vdso, "the auxiliary vector changed");
    for (int i = 0; i < 3; i++) {
        uint64_t before = calls[i];
        for (int wait = 0; calls[i] == before && wait < 500; wait++)
            check_sleep(10);
        CHECK(calls[i] > before, "thread %d no longer runs", i);
    }
    stop = true;
    for (int i = 0; i < 3; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
