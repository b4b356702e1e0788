/*
 * What the source has decided, and how it is told: the DECISION connection.
 *
 * The source decides once, by one compare-and-swap in memory that lm-serve and its custodian share (`decided`):
 * UNDECIDED to COMMIT or to NO, before anything is sent or thawed. Nothing else decides; no end of a connection, no
 * reset and no silence says anything.
 *
 * It is told in words of one size. COMMIT and NO carry tokens, 32 random bytes each that only the source knows; their
 * SHA-256 has travelled in the description. All other words carry a token that both sides make of the session's
 * secret: HMAC-SHA256(secret, "lm-word " and the word in small letters). So nobody else can say a word, and repeating
 * one that was said is no harm: each is a fact that stays true, except UNDECIDED, which says nothing. That is why it
 * needs no TLS, which no custodian could go on with.
 *
 *     destination to source                     source to destination
 *     ASK n        what was decided?            UNDECIDED n, COMMIT n or NO n; COMMIT 0, NO 0 unasked
 *     RESUMED      the process runs here        ACKNOWLEDGED
 *     DROPPED      the husk is gone             ACKNOWLEDGED
 *
 * The side that has connected for CONTROL connects for DECISION too, to the same port, and again where that is lost,
 * with growing pauses; the other one listens for that. It begins with a HELLO and a word. Whoever begins in another
 * way is let go. But a connection that begins as those of the command do (wire/handshake.py) is passed on to the command,
 * unread, where there is a way to it (`command`): both listen at one port, and only one of them can take a connection.
 *
 *     HELLO, 64 bytes, little endian            a word, 48 bytes, little endian
 *     0   8   "LMIGRATE"                        0   u32 which one: 1 ASK, 2 UNDECIDED, 3 COMMIT, 4 NO,
 *     8   u16 version of the protocol                   5 RESUMED, 6 DROPPED, 7 ACKNOWLEDGED
 *     10  u8  side: 1 source, 2 destination     4   u32 n
 *     11  u8  4                                 8   u64 of COMMIT unasked: how long the freeze has lasted
 *     12  u32 1                                         when it arrives, in nanoseconds; else 0
 *     16  16  session                           16  32  token
 *     32  32  0
 *
 * Custodians speak it too, so it allocates nothing.
 */
#ifndef LM_WIRE_DECISION_H
#define LM_WIRE_DECISION_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_DECISION_UNDECIDED 0
#define LM_DECISION_COMMIT 1
#define LM_DECISION_NO 2

#define LM_WORD_ASK 1
#define LM_WORD_UNDECIDED 2
#define LM_WORD_COMMIT 3
#define LM_WORD_NO 4
#define LM_WORD_RESUMED 5
#define LM_WORD_DROPPED 6
#define LM_WORD_ACKNOWLEDGED 7
#define LM_WORD_KINDS 8

#define LM_WORD_TOKEN 32
#define LM_WORD_HELLO 64
#define LM_WORD_ADDRESS 128
#define LM_WORD_STRANGERS 64

/* Shared by a side's command and its custodian.
 *
 * decided   what the source has decided, LM_DECISION_...; at the destination, what it has heard of that, or by hand
 * by_hand   1: it was decided here by hand, for a source that is gone (--decide)
 * heard     at the source: RESUMED or DROPPED, once the destination has said it. At the destination: ACKNOWLEDGED
 * tokens    by word. At the destination those of COMMIT and NO are their SHA-256
 * hello     how a connection begins
 * address   of the side that listens, a struct sockaddr; without a length this side listens itself */
struct lm_decision {
    uint32_t decided;
    uint32_t heard;
    uint32_t by_hand;
    uint32_t address_length;
    unsigned char address[LM_WORD_ADDRESS];
    unsigned char hello[LM_WORD_HELLO];
    unsigned char tokens[LM_WORD_KINDS][LM_WORD_TOKEN];
};

struct lm_word {
    uint32_t kind;
    uint32_t number;
    uint64_t frozen_ns;
    unsigned char token[LM_WORD_TOKEN];
};

/* One process's end of it. `connection` is -1 without one; `listener` is -1 where this side connects. */
struct lm_decision_line {
    struct lm_decision *decision;
    int connection;
    int listener;
    int command;       /* a unix socket to the command, for connections that are for it; -1: there is none */
    uint32_t asked;    /* the number of the last ASK; an answer to another one is stale */
    uint32_t tries;    /* connections since a word was heard */
    uint32_t refused;  /* of those, the last ones that were refused or ended without a word */
    uint64_t again_ns; /* CLOCK_BOOTTIME, as all of them: not to connect before */
    uint64_t say_ns;   /* when to say again what was not answered */
    uint64_t
        silent_ns;    /* when a connection on which nothing was answered counts as lost; 0: nothing is due */
    uint32_t renewed; /* how often the connection was made anew */
    size_t have;      /* of the next word */
    unsigned char part[48];
    size_t stranger_count;
    int strangers[LM_WORD_STRANGERS];
};

/* Decide, if nothing is decided: the one compare-and-swap. Whether it is now decided so. */
int lm_decision_decide(struct lm_decision *decision, uint32_t how);

void lm_decision_open(struct lm_decision_line *line, struct lm_decision *decision, int connection,
                      int listener);

/* Make the first connection, with this word, or let it in and answer with it, within that time: its descriptor, or -1. */
int lm_decision_meet(struct lm_decision_line *line, uint32_t kind, int timeout_ms);

/* Say a word, which always fits the socket's buffer. What cannot be said is left, with the connection. */
void lm_decision_say(struct lm_decision_line *line, uint32_t kind, uint32_t number, uint64_t frozen_ns);

/* Ask what was decided, and connect or listen as that needs: for at most `timeout_ms`, or until the process
 * behind `pidfd` has ended. After `stale_ns` (CLOCK_BOOTTIME) only the answer to a question counts: a word that
 * waited in the socket for long may be overtaken. LM_DECISION_...; UNDECIDED when the time is over or the
 * process has ended. `frozen_ns` gets what COMMIT says of it, or 0. */
uint32_t lm_decision_ask(struct lm_decision_line *line, int pidfd, int timeout_ms, uint64_t stale_ns,
                         uint64_t *frozen_ns);

/* Say RESUMED or DROPPED until that is acknowledged, for at most `timeout_ms` (-1: as long as it takes), or until the
 * process behind `pidfd` (-1: none) has ended, or more than `most_refused` connections one after another were
 * refused, so that nobody listens any more. Whether it was. */
int lm_decision_report(struct lm_decision_line *line, uint32_t kind, int pidfd, int timeout_ms,
                       uint32_t most_refused);

/* Close the connection, and those of strangers. */
void lm_decision_close(struct lm_decision_line *line);

/* Remember where the other side listens, to connect to it again: an address of AF_INET or AF_INET6 as text. The scope
 * is that of sockaddr_in6. 0 or -errno. */
int lm_decision_remember(struct lm_decision *decision, int family, const char *host, uint16_t port,
                         uint32_t scope);

/* The clock by which words get stale (CLOCK_BOOTTIME), which goes on while a host sleeps. */
uint64_t lm_decision_now_ns(void);
/* cffi: end */

/* Descriptors to wait for: the connection, or who may become one. At most LM_WORD_STRANGERS + 1. */
size_t lm_decision_watch(const struct lm_decision_line *line, struct pollfd *watched);

/* Take the next word that is whole and right: 1, or 0 if there is none. A connection that has ended, or says what
 * cannot be, is closed. `connection` says whether there is one. */
int lm_decision_take(struct lm_decision_line *line, struct lm_word *word);

/* Where this side listens: let the other one in. */
void lm_decision_admit(struct lm_decision_line *line);

/* Where there is no connection, make one or let one in; say the word when it is time for it again, and give up a
 * connection on which nothing is answered. Call it whenever something may have happened. */
void lm_decision_keep_saying(struct lm_decision_line *line, uint32_t kind);

#endif
