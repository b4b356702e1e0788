/*
 * Pace: how fast bulk data may go (a limit that the user set), how fast the link takes it (measured), and whether
 * compressing pays then.
 *
 * Compressing pays when the pages then travel faster than raw: with a link of L bytes/s, a compressor of C
 * bytes/s (input) that shrinks to 1/r, raw pages go at L and compressed ones at min(C, L * r). L is only
 * known while the link is busy: a writer had to wait for room, or found what was written before still unsent.
 * A link that is always done before the next write is not the limit.
 */
#ifndef LM_WIRE_PACE_H
#define LM_WIRE_PACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */
#define LM_COMPRESS_AUTO -1
#define LM_COMPRESS_NONE 0
/* cffi: end */

uint64_t lm_now_ns(void);

/* A token bucket: at most `rate` bytes per second on average, with bursts of 5 ms, which make up for a sleep that was too long. */
struct lm_bucket {
    _Atomic uint64_t rate; /* bytes per second, 0 for no limit; may be changed by any thread */
    uint64_t free_at_ns;   /* when what was taken so far will have been paid for */
};

/* Take `bytes` and return how many nanoseconds to wait before they may go. */
uint64_t lm_bucket_take(struct lm_bucket *bucket, uint64_t bytes);

/* How much to send in one go so that a fault never waits long behind it: between `least` and `most`. */
uint32_t lm_bucket_portion(struct lm_bucket *bucket, uint32_t least, uint32_t most);

struct lm_pace {
    _Atomic int
        policy; /* LM_COMPRESS_AUTO, LM_COMPRESS_NONE or a level of zstd; may be changed by any thread */
    _Atomic uint64_t
        link; /* bytes per second that the link took when it was the limit; 0 as long as it never was */
    double compressor;        /* bytes of input per second; 0 while unknown */
    double ratio;             /* input over output */
    bool compressing;         /* what the automatic policy has chosen */
    uint64_t evidence;        /* bytes of input that both were learned from */
    uint32_t until_sample;    /* raw pages until some are compressed to learn the ratio */
    uint32_t sample_interval; /* and how many after that */
    uint32_t until_trial;     /* compressed batches until some go raw to find out whether it still pays */
    uint32_t trial_interval;  /* and how many after that */
    uint32_t raw_trial;       /* raw batches of it that are left */
    uint32_t trial_windows;   /* how often the link was measured in it */
    bool busy;                /* the link was, at the last write */
    uint64_t unsent;          /* what the last write left unsent, bytes */
    uint64_t since_ns;        /* from when it has been busy without a break, or was measured last */
    uint64_t carried;         /* bytes that it took since then */
};

void lm_pace_init(struct lm_pace *pace);

/* The level for the next `*pages` pages of the bulk stream, 0 for raw; for a trial fewer are enough. */
int lm_pace_level(struct lm_pace *pace, uint32_t *pages);

/* The level for a page that somebody waits for: only a slow link is worth the time. May be called by another
 * thread. */
int lm_pace_level_urgent(const struct lm_pace *pace);

/* Tell what compressing cost and brought; and of a write how many bytes it had, how many bytes of this and
 * earlier ones are not sent yet (0 where the transport cannot tell) and whether it had to wait for room. */
void lm_pace_compressed(struct lm_pace *pace, uint64_t input, uint64_t output, uint64_t ns);
void lm_pace_written(struct lm_pace *pace, uint64_t bytes, uint64_t unsent, bool waited);

#endif
