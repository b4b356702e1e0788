#define _GNU_SOURCE
#include "restorer/verdict.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum {
    /* A frame of wire/messages.py: length, unpacked length, form, three zeros. */
    HEADER = 12,
    FORM_PLAIN = 1,
    /* The body begins with a map of some length whose first key is "kind". */
    KIND_AT = 1,
    BODY_LOOKED_AT = 32,
    CHUNK = 512,
};

/* Up to `size` bytes: how many, -errno, -ESRCH when the process has ended. An end in order tells no more than a
 * broken one: whoever passes the connection on can end it with COMMIT in hand. */
static long take(int control_socket, int pidfd, char *bytes, size_t size) {
    for (;;) {
        struct pollfd watched[] = {{.fd = control_socket, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
        ssize_t count = recv(control_socket, bytes, size, MSG_DONTWAIT);

        if (count > 0)
            return count;
        if (count == 0)
            return -ECONNRESET;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (poll(watched, 2, -1) > 0 && watched[1].revents != 0)
            return -ESRCH;
    }
}

/* Exactly `size` bytes: 1, or -errno. */
static long take_all(int control_socket, int pidfd, char *bytes, size_t size) {
    for (size_t have = 0; have < size;) {
        long count = take(control_socket, pidfd, bytes + have, size - have);

        if (count < 0)
            return count;
        have += (size_t)count;
    }
    return 1;
}

static bool is_kind(const char *body, size_t length, const char *kind) {
    size_t size = strlen(kind);

    return length >= KIND_AT + size && memcmp(body + KIND_AT, kind, size) == 0;
}

/* One message. *decided is false after one that says nothing. */
static enum lm_verdict next_message(int control_socket, int pidfd, bool *decided) {
    char header[HEADER], body[CHUNK];
    uint32_t length = 0;
    size_t have = 0;
    long got = take_all(control_socket, pidfd, header, sizeof header);

    *decided = true;
    if (got < 0)
        return got == -ESRCH ? LM_VERDICT_NO : LM_VERDICT_DOUBT;
    memcpy(&length, header, sizeof length);
    have = length < BODY_LOOKED_AT ? length : BODY_LOOKED_AT;
    got = take_all(control_socket, pidfd, body, have);
    if (got != 1 || header[8] != FORM_PLAIN)
        return got == -ESRCH ? LM_VERDICT_NO : LM_VERDICT_DOUBT;
    /* MessagePack: a string shorter than 32 bytes is its length with 0xa0, and its bytes. */
    if (is_kind(body, have,
                "\xa4kind\xa6"
                "commit"))
        return LM_VERDICT_COMMIT;
    if (is_kind(body, have,
                "\xa4kind\xa5"
                "abort") ||
        is_kind(body, have,
                "\xa4kind\xa8"
                "blockers"))
        return LM_VERDICT_NO;
    *decided = !is_kind(body, have,
                        "\xa4kind\xa4"
                        "ping") &&
               !is_kind(body, have,
                        "\xa4kind\xa4"
                        "pong");
    if (!*decided && length - have > 0)
        *decided = length - have > sizeof body || take_all(control_socket, pidfd, body, length - have) != 1;
    return LM_VERDICT_DOUBT;
}

enum lm_verdict lm_verdict_await(int control_socket, int pidfd) {
    enum lm_verdict verdict = LM_VERDICT_DOUBT;
    bool decided = false;

    while (!decided)
        verdict = next_message(control_socket, pidfd, &decided);
    return verdict;
}

int lm_verdict_number(int control_socket, int pidfd) {
    return (int)lm_verdict_await(control_socket, pidfd);
}
