/*
 * What a link does: round trips of small UDP packets and the rate of one TCP connection, measured between two
 * network namespaces. Prints one line of JSON: "rtt_us", every round trip in microseconds, and "rate", bytes
 * per second that arrived in the second half of the time, when the connection has found its speed.
 *
 *     probe SOURCE_NETNS DESTINATION_NETNS SOURCE_ADDRESS ROUND_TRIPS SECONDS
 *
 * Data flows from the source to the destination, as in a migration. A round trip that takes far longer
 * than the first one counts as lost and is left out. SECONDS 0: no rate.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PORT = 7070, CHUNK = 1 << 18, PAUSE_NS = 1000000, LEAST_PATIENCE_NS = 200000000 };

static void enter(const char *netns) {
    int file = open(netns, O_RDONLY | O_CLOEXEC);
    if (file < 0 || setns(file, CLONE_NEWNET))
        fail(netns);
    close(file);
}

static int bound(int type, const struct sockaddr_in *address) {
    int one = 1, made = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (made < 0 || bind(made, (const struct sockaddr *)address, sizeof *address))
        fail("bind");
    return made;
}

/* Answers every packet. */
static void echo(int udp) {
    char packet[64];
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(udp, packet, sizeof packet, 0, (struct sockaddr *)&from, &length);
        if (size > 0)
            sendto(udp, packet, (size_t)size, 0, (struct sockaddr *)&from, length);
    }
}

/* Sends as fast as it goes to whoever connects. */
static void pour(int listener) {
    char *chunk = calloc(1, CHUNK);
    int connection = accept(listener, NULL, NULL);
    while (connection >= 0 && send(connection, chunk, CHUNK, MSG_NOSIGNAL) > 0)
        ;
    _exit(0);
}

static void round_trips(const struct sockaddr_in *address, int count) {
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {3, 0};
    if (udp < 0 || connect(udp, (const struct sockaddr *)address, sizeof *address) ||
        setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
        fail("connect");
    const char *separator = "";
    printf("{\"rtt_us\": [");
    for (uint64_t i = 0; i < (uint64_t)count; i++) {
        uint64_t begin = now_ns(), answer = UINT64_MAX;
        struct timespec pause = {0, PAUSE_NS};
        if (send(udp, &i, sizeof i, 0) != sizeof i)
            continue;
        while (answer != i && recv(udp, &answer, sizeof answer, 0) == sizeof answer)
            ;
        if (answer == i) {
            uint64_t took = now_ns() - begin, wait = took * 4 + LEAST_PATIENCE_NS;
            printf("%s%.1f", separator, (double)took / 1000);
            if (!*separator) {
                patience =
                    (struct timeval){(time_t)(wait / 1000000000u), (suseconds_t)(wait % 1000000000u / 1000)};
                setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            }
            separator = ", ";
        }
        nanosleep(&pause, NULL);
    }
    close(udp);
}

static double rate(const struct sockaddr_in *address, double seconds) {
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {5, 0};
    char *chunk = malloc(CHUNK);
    if (tcp < 0 || !chunk || setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
        connect(tcp, (const struct sockaddr *)address, sizeof *address))
        fail("connect");
    uint64_t begin = now_ns(), half = begin + (uint64_t)(seconds * 5e8),
             end = begin + (uint64_t)(seconds * 1e9);
    uint64_t now = begin, first = 0, bytes = 0;
    while (now < end) {
        ssize_t size = recv(tcp, chunk, CHUNK, 0);
        if (size <= 0)
            break;
        now = now_ns();
        if (first)
            bytes += (uint64_t)size;
        else if (now >= half)
            first = now;
    }
    close(tcp);
    free(chunk);
    return first && now > first ? (double)bytes * 1e9 / (double)(now - first) : 0;
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (inet_pton(AF_INET, argv[3], &address.sin_addr) != 1)
        return 2;
    double seconds = strtod(argv[5], NULL);
    enter(argv[1]);
    int udp = bound(SOCK_DGRAM, &address), listener = bound(SOCK_STREAM, &address);
    if (listen(listener, 1))
        fail("listen");
    pid_t servers[2];
    for (int i = 0; i < 2; i++) {
        servers[i] = fork();
        if (servers[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            i ? pour(listener) : echo(udp);
        }
    }
    enter(argv[2]);
    round_trips(&address, atoi(argv[4]));
    printf("], \"rate\": %.0f}\n", seconds > 0 ? rate(&address, seconds) : 0.0);
    for (int i = 0; i < 2; i++) {
        kill(servers[i], SIGKILL);
        waitpid(servers[i], NULL, 0);
    }
    return 0;
}
