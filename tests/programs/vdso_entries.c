/*
 * feature: functions of the vdso called by pointers taken before the move, also where the destination's kernel
 * has another vdso: they lead to that one, or to system calls
 * limits: there getrandom always makes the system call, and the source's vdso stays in the process as memory of
 * its own
 */
#include "check.h"
#include <dlfcn.h>
#include <sys/time.h>

#define RANDOM_LENGTH 32
#define STATE_ROOM 4096

/* struct vgetrandom_opaque_params of linux/random.h, which Debian 12's headers lack. */
struct random_state {
    uint32_t size, protection, flags, reserved[13];
};

static int (*get_time)(clockid_t, struct timespec *);
static int (*get_resolution)(clockid_t, struct timespec *);
static int (*get_day)(struct timeval *, void *);
static time_t (*get_seconds)(time_t *);
static long (*get_processor)(unsigned *, unsigned *, void *);
static ssize_t (*get_random)(void *, size_t, unsigned, void *, size_t);

static struct random_state random_kind;
static void *random_memory;
static volatile bool stop;
static volatile uint64_t calls[3];

static double told(clockid_t clock) {
    struct timespec now;
    CHECK(get_time(clock, &now) == 0 && now.tv_nsec >= 0 && now.tv_nsec < 1000000000, "clock %d", clock);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void check_random(void) {
    unsigned char first[RANDOM_LENGTH] = {0}, second[RANDOM_LENGTH] = {0};
    CHECK(get_random(first, sizeof first, 0, random_memory, random_kind.size) == sizeof first, "getrandom");
    CHECK(get_random(second, sizeof second, 0, NULL, 0) == sizeof second, "getrandom without a state");
    CHECK(memcmp(first, second, sizeof first) != 0, "the same random bytes twice");
    for (int i = 0; i < RANDOM_LENGTH - 8; i++)
        CHECK(memcmp(first + i, (char[8]){0}, 8) != 0, "random bytes are zeros");
}

static void check_all(void) {
    struct timespec resolution;
    struct timeval day;
    unsigned processor = 4096;
    static const clockid_t kept[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
                                     CLOCK_PROCESS_CPUTIME_ID};
    for (size_t i = 0; i < COUNT(kept); i++) {
        double here = told(kept[i]), called = check_now(kept[i]);
        CHECK(called >= here && called < here + 60, "clock %d: %.9f, by call %.9f", kept[i], here, called);
        CHECK(get_resolution(kept[i], &resolution) == 0 && resolution.tv_sec == 0 && resolution.tv_nsec > 0,
              "the resolution of clock %d", kept[i]);
    }
    time_t seconds = get_seconds(NULL);
    CHECK(get_day(&day, NULL) == 0 && day.tv_sec >= seconds && day.tv_sec < seconds + 60, "gettimeofday");
    CHECK(get_processor(&processor, NULL, NULL) == 0 && processor < 4096, "getcpu: %u", processor);
    CHECK(get_time(12345, &resolution) == -EINVAL, "a clock that there is not");
    if (get_random)
        check_random();
}

/* Mostly caught inside the vdso. */
static void *call_on(void *argument) {
    volatile uint64_t *count = argument;
    double last[2] = {0};
    while (!stop) {
        for (int i = 0; i < 2; i++) {
            double now = told(i ? CLOCK_MONOTONIC_COARSE : CLOCK_MONOTONIC);
            CHECK(now >= last[i], "clock %d went back from %.9f to %.9f", i, last[i], now);
            last[i] = now;
        }
        CHECK(get_seconds(NULL) > 1600000000, "the time is %ld", (long)get_seconds(NULL));
        (*count)++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[COUNT(calls)];
    check_start(argc, argv);
    void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    CHECK(vdso, "no vdso: %s", dlerror());
    *(void **)&get_time = dlsym(vdso, "__vdso_clock_gettime");
    *(void **)&get_resolution = dlsym(vdso, "__vdso_clock_getres");
    *(void **)&get_day = dlsym(vdso, "__vdso_gettimeofday");
    *(void **)&get_seconds = dlsym(vdso, "__vdso_time");
    *(void **)&get_processor = dlsym(vdso, "__vdso_getcpu");
    *(void **)&get_random = dlsym(vdso, "__vdso_getrandom");
    CHECK(get_time && get_resolution && get_day && get_seconds && get_processor, "a function is missing");
    CHECK(dlsym(vdso, "clock_gettime") == (void *)get_time, "the functions' other names");
    if (get_random) {
        CHECK(get_random(NULL, 0, 0, &random_kind, ~0UL) == 0, "the kind of getrandom's state");
        CHECK(random_kind.size > 0 && random_kind.size <= STATE_ROOM, "a state of %u bytes",
              random_kind.size);
        random_memory = mmap(NULL, STATE_ROOM, (int)random_kind.protection, (int)random_kind.flags, -1, 0);
        CHECK(random_memory != MAP_FAILED, "memory for getrandom's state");
    }
    check_all();
    for (size_t i = 0; i < COUNT(calls); i++)
        threads[i] = check_thread(call_on, (void *)&calls[i]);
    check_move();
    check_all();
    for (size_t i = 0; i < COUNT(calls); i++) {
        uint64_t before = calls[i];
        for (int wait = 0; calls[i] == before && wait < 2000; wait++)
            check_sleep(10);
        CHECK(calls[i] > before, "thread %zu no longer runs", i);
    }
    stop = true;
    for (size_t i = 0; i < COUNT(calls); i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
