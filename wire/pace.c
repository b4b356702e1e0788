#include "wire/pace.h"

#include <string.h>
#include <time.h>

enum { AUTO_LEVEL = 1, LINK_WINDOW_NS = 2000000 };

/* Batches: how many go raw for a trial, unless the link has been measured so often before; after how many
 * compressed ones first, and after how many at most. */
enum { TRIAL_BATCHES = 32, TRIAL_WINDOWS = 4, TRIAL_FIRST = 32, TRIAL_RARELY = 1024 };

/* Pages: how many are compressed for a trial, after how many others first, and after how many at most. */
enum { SAMPLE_PAGES = 16, SAMPLE_FIRST = 128, SAMPLE_RARELY = 1 << 15 };

/* Bytes of input from which on what was measured before fades. */
enum { EVIDENCE = 320 << 10 };

/* What a page costs to compress when the compressor's speed is not known yet: measured for zstd level 1. */
#define USUAL_COMPRESSOR 3e8

uint64_t lm_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t lm_bucket_take(struct lm_bucket *bucket, uint64_t bytes) {
    uint64_t rate = atomic_load_explicit(&bucket->rate, memory_order_relaxed);
    if (!rate)
        return 0;
    const uint64_t burst = 5000000;
    uint64_t now = lm_now_ns();
    if (bucket->free_at_ns + burst < now)
        bucket->free_at_ns = now - burst;
    uint64_t wait = bucket->free_at_ns > now ? bucket->free_at_ns - now : 0;
    bucket->free_at_ns += (uint64_t)((double)bytes * 1e9 / (double)rate);
    return wait;
}

uint32_t lm_bucket_portion(struct lm_bucket *bucket, uint32_t least, uint32_t most) {
    uint64_t rate = atomic_load_explicit(&bucket->rate, memory_order_relaxed);
    uint64_t portion = rate ? rate / 500 : most;
    return portion < least ? least : portion > most ? most : (uint32_t)portion;
}

void lm_pace_init(struct lm_pace *pace) {
    memset(pace, 0, sizeof *pace);
    atomic_init(&pace->policy, LM_COMPRESS_AUTO);
    pace->sample_interval = pace->until_sample = SAMPLE_FIRST;
}

/* Whether compressed pages would arrive a tenth sooner than raw ones. */
static bool pays(const struct lm_pace *pace) {
    double link = (double)atomic_load_explicit(&pace->link, memory_order_relaxed);
    if (link == 0 || pace->compressor == 0)
        return false;
    double compressed = link * pace->ratio < pace->compressor ? link * pace->ratio : pace->compressor;
    return compressed > 1.1 * link;
}

int lm_pace_level(struct lm_pace *pace, uint32_t *pages) {
    int policy = atomic_load_explicit(&pace->policy, memory_order_relaxed);
    if (policy != LM_COMPRESS_AUTO)
        return policy;
    if (pace->raw_trial)
        return 0;
    if (pace->compressing)
        return AUTO_LEVEL;
    /* Only a link that is the limit can make compressing pay, so nothing is tried before it was busy. */
    if (!pace->busy)
        return 0;
    if (pace->until_sample > *pages) {
        pace->until_sample -= *pages;
        return 0;
    }
    if (pace->sample_interval < SAMPLE_RARELY)
        pace->sample_interval *= 2;
    pace->until_sample = pace->sample_interval;
    if (*pages > SAMPLE_PAGES)
        *pages = SAMPLE_PAGES;
    return AUTO_LEVEL;
}

int lm_pace_level_urgent(const struct lm_pace *pace) {
    int policy = atomic_load_explicit(&pace->policy, memory_order_relaxed);
    if (policy != LM_COMPRESS_AUTO)
        return policy;
    uint64_t link = atomic_load_explicit(&pace->link, memory_order_relaxed);
    return link && (double)link < USUAL_COMPRESSOR / 4 ? AUTO_LEVEL : 0;
}

void lm_pace_compressed(struct lm_pace *pace, uint64_t input, uint64_t output, uint64_t ns) {
    double rate = (double)input * 1e9 / (double)(ns ? ns : 1),
           ratio = (double)input / (double)(output ? output : 1);
    /* One page takes several times as long a byte as many, so each counts by its size. */
    pace->evidence = pace->evidence + input < EVIDENCE ? pace->evidence + input : EVIDENCE;
    double weight = input < pace->evidence ? (double)input / (double)pace->evidence : 1;
    pace->compressor += weight * (rate - pace->compressor);
    pace->ratio += weight * (ratio - pace->ratio);
}

/* Measure the link's rate over as long a time without a break as that takes; true when it was measured. A slower rate
 * than before counts little, and compressed pages do not count: the cause is more often a processor that is needed for
 * something else than the link, and compressing would take more of the processor. */
static bool measure(struct lm_pace *pace, uint64_t bytes, uint64_t unsent, bool busy) {
    uint64_t now = lm_now_ns();
    bool measured = false, raw = !pace->compressing || pace->raw_trial;
    if (!busy || !pace->busy) {
        pace->since_ns = now;
        pace->carried = 0;
    } else {
        pace->carried += pace->unsent + bytes > unsent ? pace->unsent + bytes - unsent : 0;
        if (now - pace->since_ns >= LINK_WINDOW_NS) {
            double rate = (double)pace->carried * 1e9 / (double)(now - pace->since_ns);
            double before = (double)atomic_load_explicit(&pace->link, memory_order_relaxed);
            double share = before == 0 ? 1 : rate > before ? 0.3 : raw ? 0.05 : 0;
            double link = before + share * (rate - before);
            if (rate * 2 < before && raw)
                pace->sample_interval = pace->until_sample = SAMPLE_FIRST;
            atomic_store_explicit(&pace->link, (uint64_t)link, memory_order_relaxed);
            pace->since_ns = now;
            pace->carried = 0;
            measured = true;
        }
    }
    pace->unsent = unsent;
    pace->busy = busy;
    return measured;
}

void lm_pace_written(struct lm_pace *pace, uint64_t bytes, uint64_t unsent, bool waited) {
    bool busy = waited || unsent > bytes, measured = measure(pace, bytes, unsent, busy);
    if (!pace->compressing) {
        pace->compressing = busy && pays(pace);
        pace->until_trial = pace->trial_interval = TRIAL_FIRST;
    } else if (pace->raw_trial) {
        pace->trial_windows += measured;
        /* A link that raw batches do not keep busy is not the limit. */
        if (--pace->raw_trial == 0 || pace->trial_windows == TRIAL_WINDOWS) {
            pace->raw_trial = 0;
            pace->compressing = pace->trial_windows && pays(pace);
        }
    } else if (!pays(pace)) {
        pace->compressing = false;
    } else if (--pace->until_trial == 0) {
        /* Is the link still the limit? Raw batches tell, the more rarely the more often they have said so. */
        if (pace->trial_interval < TRIAL_RARELY)
            pace->trial_interval *= 2;
        pace->until_trial = pace->trial_interval;
        pace->raw_trial = TRIAL_BATCHES;
        pace->trial_windows = 0;
    }
}
