#define _GNU_SOURCE
#include "wire/decision.h"

#include "wire/sha256.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    /* Of a HELLO. */
    VERSION_END = 10,
    SIDE_AT = 10,
    ROLE_AT = 11,
    KIND_BYTES = 12,
    ROLE_DECISION = 4,
    MAGIC_BYTES = 8,
    SESSION_AT = 16,
    SESSION_BYTES = 16,
    SIDE_DESTINATION = 2,
    BOTH_SIDES = 3,
    FIRST_WORDS = LM_WORD_HELLO + sizeof(struct lm_word),
    CONNECT_MS = 2000,
    MOST_DOUBLINGS = 6,
};

static const uint64_t MS = 1000000, FIRST_PAUSE_MS = 30, SAY_AGAIN_MS = 1000, SILENT_MS = 5000;

_Static_assert(sizeof(struct lm_word) == sizeof((struct lm_decision_line *)0)->part, "a word is 48 bytes");

uint64_t lm_decision_now_ns(void) {
    struct timespec now = {0};

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000 * MS + (uint64_t)now.tv_nsec;
}

int lm_decision_decide(struct lm_decision *decision, uint32_t how) {
    uint32_t found = LM_DECISION_UNDECIDED;

    return __atomic_compare_exchange_n(&decision->decided, &found, how, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST) ||
           found == how;
}

static void forget_connection(struct lm_decision_line *line) {
    if (line->connection >= 0)
        close(line->connection);
    line->connection = -1;
    line->have = 0;
    line->silent_ns = 0;
}

void lm_decision_open(struct lm_decision_line *line, struct lm_decision *decision, int connection,
                      int listener) {
    memset(line, 0, sizeof *line);
    line->decision = decision;
    line->connection = connection;
    line->listener = listener;
    line->command = -1;
    line->say_ns = lm_decision_now_ns() + SAY_AGAIN_MS * MS;
}

void lm_decision_close(struct lm_decision_line *line) {
    forget_connection(line);
    for (size_t i = 0; i < line->stranger_count; i++)
        close(line->strangers[i]);
    line->stranger_count = 0;
}

int lm_decision_remember(struct lm_decision *decision, int family, const char *host, uint16_t port,
                         uint32_t scope) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_scope_id = scope};

    if (family == AF_INET && inet_pton(family, host, &four.sin_addr) == 1) {
        memcpy(decision->address, &four, sizeof four);
        decision->address_length = sizeof four;
    } else if (family == AF_INET6 && inet_pton(family, host, &six.sin6_addr) == 1) {
        memcpy(decision->address, &six, sizeof six);
        decision->address_length = sizeof six;
    } else {
        return -EINVAL;
    }
    return 0;
}

static void compose(const struct lm_decision_line *line, struct lm_word *word, uint32_t kind, uint32_t number,
                    uint64_t frozen_ns) {
    *word = (struct lm_word){.kind = kind, .number = number, .frozen_ns = frozen_ns};
    memcpy(word->token, line->decision->tokens[kind], sizeof word->token);
}

void lm_decision_say(struct lm_decision_line *line, uint32_t kind, uint32_t number, uint64_t frozen_ns) {
    struct lm_word word;

    if (line->connection < 0)
        return;
    compose(line, &word, kind, number, frozen_ns);
    if (send(line->connection, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof word)
        forget_connection(line);
}

/* In a time that says nothing about where two tokens differ. */
static bool are_equal(const unsigned char *one, const unsigned char *other, size_t size) {
    unsigned char difference = 0;

    for (size_t i = 0; i < size; i++)
        difference |= one[i] ^ other[i];
    return difference == 0;
}

static bool is_right(const struct lm_decision *decision, const struct lm_word *word) {
    const bool destination = decision->hello[SIDE_AT] == SIDE_DESTINATION;
    const bool by_source = word->kind == LM_WORD_UNDECIDED || word->kind == LM_WORD_COMMIT ||
                           word->kind == LM_WORD_NO || word->kind == LM_WORD_ACKNOWLEDGED;
    unsigned char digest[LM_SHA256_BYTES];
    const unsigned char *told = word->token;

    if (word->kind == 0 || word->kind >= LM_WORD_KINDS || by_source != destination)
        return false;
    if (word->kind == LM_WORD_COMMIT || word->kind == LM_WORD_NO) {
        lm_sha256(word->token, sizeof word->token, digest);
        told = digest;
    }
    return are_equal(told, decision->tokens[word->kind], LM_WORD_TOKEN);
}

int lm_decision_take(struct lm_decision_line *line, struct lm_word *word) {
    while (line->connection >= 0) {
        ssize_t count =
            recv(line->connection, line->part + line->have, sizeof line->part - line->have, MSG_DONTWAIT);

        if (count < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (count <= 0) {
            /* Whoever answered there was not the other side, if it has said nothing. */
            if (line->tries != 0)
                line->refused++;
            forget_connection(line);
            return 0;
        }
        line->have += (size_t)count;
        if (line->have < sizeof line->part)
            continue;
        line->have = 0;
        memcpy(word, line->part, sizeof *word);
        if (!is_right(line->decision, word)) {
            forget_connection(line);
            return 0;
        }
        line->silent_ns = line->tries = line->refused = 0;
        return 1;
    }
    return 0;
}

size_t lm_decision_watch(const struct lm_decision_line *line, struct pollfd *watched) {
    size_t count = 0;

    if (line->connection >= 0)
        watched[count++] = (struct pollfd){.fd = line->connection, .events = POLLIN};
    if (line->listener < 0)
        return count;
    watched[count++] = (struct pollfd){.fd = line->listener, .events = POLLIN};
    for (size_t i = 0; i < line->stranger_count; i++)
        watched[count++] = (struct pollfd){.fd = line->strangers[i], .events = POLLIN};
    return count;
}

static void remove_stranger(struct lm_decision_line *line, size_t place) {
    line->stranger_count--;
    memmove(&line->strangers[place], &line->strangers[place + 1],
            (line->stranger_count - place) * sizeof line->strangers[0]);
}

/* Whether somebody begins as only the other side of this session can. */
static bool is_peer(const struct lm_decision *decision, const unsigned char *first) {
    const unsigned char *own = decision->hello;
    struct lm_word word;

    memcpy(&word, first + LM_WORD_HELLO, sizeof word);
    return memcmp(first, own, VERSION_END) == 0 && first[SIDE_AT] == BOTH_SIDES - own[SIDE_AT] &&
           first[ROLE_AT] == own[ROLE_AT] &&
           memcmp(first + SESSION_AT, own + SESSION_AT, SESSION_BYTES) == 0 && is_right(decision, &word);
}

/* It may be for the command: pass it on, and let go of it in any case. What the command has no room for dials again. */
static void pass_on(const struct lm_decision_line *line, int one, const unsigned char *first) {
    char kind = 0;
    struct iovec part = {&kind, sizeof kind};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof one)];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};

    if (line->command >= 0 && memcmp(first, line->decision->hello, MAGIC_BYTES) == 0) {
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof one), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &one, sizeof one);
        setsockopt(one, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int));
        (void)!sendmsg(line->command, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    close(one);
}

/* Those who wait at the port, and what they have said. The newest connection of the peer's counts: an older one may
 * be broken without anybody's knowing. */
void lm_decision_admit(struct lm_decision_line *line) {
    unsigned char first[FIRST_WORDS];
    int one = -1;

    if (line->listener < 0)
        return;
    while ((one = accept4(line->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
        setsockopt(one, SOL_SOCKET, SO_RCVLOWAT, &(int){KIND_BYTES}, sizeof(int));
        if (line->stranger_count == LM_WORD_STRANGERS) {
            close(line->strangers[0]);
            remove_stranger(line, 0);
        }
        line->strangers[line->stranger_count++] = one;
    }
    for (size_t i = 0; i < line->stranger_count; i++) {
        ssize_t count = recv(line->strangers[i], first, sizeof first, MSG_PEEK | MSG_DONTWAIT);

        one = line->strangers[i];
        if (count < 0 ? errno == EAGAIN || errno == EINTR : count > 0 && count < KIND_BYTES)
            continue;
        if (count >= KIND_BYTES && first[ROLE_AT] != ROLE_DECISION) {
            remove_stranger(line, i--);
            pass_on(line, one, first);
            continue;
        }
        if (count > 0 && count < (ssize_t)sizeof first) {
            setsockopt(one, SOL_SOCKET, SO_RCVLOWAT, &(int){FIRST_WORDS}, sizeof(int));
            continue;
        }
        remove_stranger(line, i--);
        if (count != sizeof first || !is_peer(line->decision, first) ||
            recv(one, first, LM_WORD_HELLO, MSG_DONTWAIT) != LM_WORD_HELLO) {
            close(one);
            continue;
        }
        forget_connection(line);
        setsockopt(one, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int));
        setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        line->connection = one;
        line->renewed++;
        line->say_ns = 0;
    }
}

/* A connection to the side that listens, or -errno. */
static int dial(const struct lm_decision *decision) {
    const struct sockaddr *address = (const struct sockaddr *)decision->address;
    int error = 0;
    socklen_t size = sizeof error;
    int one = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd done = {.fd = one, .events = POLLOUT};

    if (one < 0)
        return -errno;
    if (connect(one, address, decision->address_length) != 0 && errno != EINPROGRESS)
        error = errno;
    else if (poll(&done, 1, CONNECT_MS) != 1)
        error = ETIMEDOUT;
    else if (getsockopt(one, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = errno;
    if (error != 0) {
        close(one);
        return -error;
    }
    setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return one;
}

/* Unless it is too early for that: connect, with this word first. */
static void reach(struct lm_decision_line *line, uint32_t kind) {
    unsigned char first[FIRST_WORDS];
    struct lm_word word;
    uint64_t now = lm_decision_now_ns();
    int one = -1;

    if (line->connection >= 0 || line->decision->address_length == 0 || now < line->again_ns)
        return;
    line->again_ns =
        now + (FIRST_PAUSE_MS << (line->tries < MOST_DOUBLINGS ? line->tries : MOST_DOUBLINGS)) * MS;
    line->tries++;
    one = dial(line->decision);
    if (one < 0) {
        line->refused = one == -ECONNREFUSED ? line->refused + 1 : 0;
        return;
    }
    line->connection = one;
    line->renewed++;
    compose(line, &word, kind, kind == LM_WORD_ASK ? ++line->asked : 0, 0);
    memcpy(first, line->decision->hello, LM_WORD_HELLO);
    memcpy(first + LM_WORD_HELLO, &word, sizeof word);
    if (send(one, first, sizeof first, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof first)
        forget_connection(line);
    now = lm_decision_now_ns();
    line->say_ns = now + SAY_AGAIN_MS * MS;
    line->silent_ns = now + SILENT_MS * MS;
}

void lm_decision_keep_saying(struct lm_decision_line *line, uint32_t kind) {
    uint64_t now = lm_decision_now_ns();

    if (line->silent_ns != 0 && now >= line->silent_ns)
        forget_connection(line);
    lm_decision_admit(line);
    reach(line, kind);
    if (line->connection < 0 || now < line->say_ns)
        return;
    lm_decision_say(line, kind, kind == LM_WORD_ASK ? ++line->asked : 0, 0);
    line->say_ns = now + SAY_AGAIN_MS * MS;
    if (line->silent_ns == 0)
        line->silent_ns = now + SILENT_MS * MS;
}

/* Wait for something to happen, at most until `end` (0: without an end). Whether the process has ended. */
static bool wait_for_more(const struct lm_decision_line *line, int pidfd, uint64_t end) {
    struct pollfd watched[LM_WORD_STRANGERS + 3];
    size_t count = lm_decision_watch(line, watched + 1);
    uint64_t now = lm_decision_now_ns();
    uint64_t next = line->connection < 0 ? now + FIRST_PAUSE_MS * MS : line->say_ns;

    if (end != 0 && end < next)
        next = end;
    watched[0] = (struct pollfd){.fd = pidfd, .events = POLLIN};
    poll(watched, count + 1, next > now ? (int)((next - now) / MS) + 1 : 0);
    return watched[0].revents != 0;
}

static uint64_t end_after(int timeout_ms) {
    return timeout_ms < 0 ? 0 : lm_decision_now_ns() + (uint64_t)timeout_ms * MS;
}

int lm_decision_meet(struct lm_decision_line *line, uint32_t kind, int timeout_ms) {
    const uint64_t end = end_after(timeout_ms);
    struct lm_word word;
    bool met = false;
    int made = -1;

    /* Who connects is let in when it is answered. */
    while (!met && lm_decision_now_ns() < end) {
        lm_decision_keep_saying(line, kind);
        met = line->listener >= 0 ? line->connection >= 0 : lm_decision_take(line, &word) == 1;
        if (!met)
            wait_for_more(line, -1, end);
    }
    if (met) {
        made = line->connection;
        line->connection = -1;
    }
    lm_decision_close(line);
    return made;
}

uint32_t lm_decision_ask(struct lm_decision_line *line, int pidfd, int timeout_ms, uint64_t stale_ns,
                         uint64_t *frozen_ns) {
    const uint64_t end = end_after(timeout_ms);
    uint32_t decided = LM_DECISION_UNDECIDED;
    struct lm_word word;

    if (line->asked == 0 && lm_decision_now_ns() >= stale_ns)
        line->say_ns = 0;
    for (;;) {
        while (lm_decision_take(line, &word) == 1) {
            bool fresh = word.number == 0 ? lm_decision_now_ns() < stale_ns : word.number == line->asked;

            if (!fresh || (word.kind != LM_WORD_COMMIT && word.kind != LM_WORD_NO))
                continue;
            *frozen_ns = word.frozen_ns;
            lm_decision_decide(line->decision,
                               word.kind == LM_WORD_COMMIT ? LM_DECISION_COMMIT : LM_DECISION_NO);
        }
        decided = __atomic_load_n(&line->decision->decided, __ATOMIC_SEQ_CST);
        if (decided != LM_DECISION_UNDECIDED)
            return decided;
        lm_decision_keep_saying(line, LM_WORD_ASK);
        if (wait_for_more(line, pidfd, end) || (end != 0 && lm_decision_now_ns() >= end))
            return LM_DECISION_UNDECIDED;
    }
}

int lm_decision_report(struct lm_decision_line *line, uint32_t kind, int pidfd, int timeout_ms,
                       uint32_t most_refused) {
    const uint64_t end = end_after(timeout_ms);
    struct lm_word word;

    line->say_ns = 0;
    for (;;) {
        while (lm_decision_take(line, &word) == 1) {
            if (word.kind == LM_WORD_ACKNOWLEDGED)
                __atomic_store_n(&line->decision->heard, LM_WORD_ACKNOWLEDGED, __ATOMIC_SEQ_CST);
        }
        if (__atomic_load_n(&line->decision->heard, __ATOMIC_SEQ_CST) != 0)
            return 1;
        lm_decision_keep_saying(line, kind);
        if (wait_for_more(line, pidfd, end) || line->refused > most_refused ||
            (end != 0 && lm_decision_now_ns() >= end))
            return 0;
    }
}
