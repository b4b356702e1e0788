/*
 * Threads in calls that take a time, each of a kind of its own: one that the kernel continues from state of
 * its own (ERESTART_RESTARTBLOCK) or makes again, and one without a time. Argument: a folder, in which
 * "asleep" says that all are in their calls, and "awake" has a line for each that has come back: its letter,
 * the result, errno, and the milliseconds that it has lasted. Nothing in here needs a page that was not
 * touched before the calls, or ends a thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SECONDS = 8, TOUCHED = 65536, LINE = 100 };

static const char KINDS[] = "ncpfer";
static int awake, data[2];
static uint32_t word;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The stack as deep as anything in here will need it. */
__attribute__((noinline)) static void touch(void) {
    char stack[TOUCHED];
    memset(stack, 1, sizeof stack);
    __asm__ volatile("" : : "r"(stack) : "memory");
}

static long sleep_by(char kind) {
    struct timespec time = {.tv_sec = SECONDS};
    struct pollfd never = {.fd = -1};
    struct epoll_event event;
    char byte;
    switch (kind) {
    case 'n':
        return nanosleep(&time, NULL);
    case 'c':
        return clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
    case 'p':
        return poll(&never, 1, SECONDS * 1000);
    case 'f':
        return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0);
    case 'e':
        return epoll_wait(epoll_create1(0), &event, 1, SECONDS * 1000);
    default:
        return read(data[0], &byte, 1);
    }
}

static void *sleeper(void *kind) {
    char line[LINE];
    touch();
    const int64_t begin = now_ms();
    errno = 0;
    const long result = sleep_by(*(const char *)kind);
    const int error = errno;
    const int length = snprintf(line, sizeof line, "%c %ld %d %ld\n", *(const char *)kind, result, error,
                                (long)(now_ms() - begin));
    if (write(awake, line, (size_t)length) != length)
        _exit(1);
    for (;;)
        pause();
}

int main(int argc, char **argv) {
    char path[1000], line[LINE];
    if (argc < 2 || pipe(data) != 0)
        return 96;
    snprintf(path, sizeof path, "%s/awake", argv[1]);
    awake = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    touch();
    for (const char *kind = KINDS; *kind; kind++) {
        pthread_t thread;
        /* What is used afterwards is used once before. */
        snprintf(line, sizeof line, "%c %ld %d %ld\n", *kind, -1L, 1, 1L);
        if (pthread_create(&thread, NULL, sleeper, (void *)(uintptr_t)kind) != 0)
            return 97;
    }
    usleep(200000);
    snprintf(path, sizeof path, "%s/asleep", argv[1]);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    sleep(SECONDS);
    if (write(data[1], "x", 1) != 1)
        return 98;
    for (;;)
        pause();
}
