#include "wire/pace.h"

#include <string.h>
#include <time.h>

enum { AUTO_LEVEL = 1, TRIAL_BATCHES = 16, SAMPLE_FIRST = 8, SAMPLE_RARELY = 1024 };

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
    const uint64_t burst = 50000000;
    uint64_t now = lm_now_ns();
    if (bucket->free_at_ns + burst < now)
        bucket->free_at_ns = now - burst;
    uint64_t wait = bucket->free_at_ns > now ? bucket->free_at_ns - now : 0;
    bucket->free_at_ns += (uint64_t)((double)bytes * 1e9 / (double)rate);
    return wait;
}

uint32_t lm_bucket_portion(struct lm_bucket *bucket, uint32_t least, uint32_t most) {
    uint64_t rate = atomic_load_explicit(&bucket->rate, memory_order_relaxed);
    uint64_t portion = rate ? rate / 50 : most;
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

int lm_pace_level(struct lm_pace *pace, bool *sample) {
    int policy = atomic_load_explicit(&pace->policy, memory_order_relaxed);
    *sample = false;
    if (policy != LM_COMPRESS_AUTO)
        return policy;
    if (pace->raw_trial) {
        pace->raw_trial--;
        return 0;
    }
    if (pace->compressing)
        return AUTO_LEVEL;
    /* Only a link that is the limit can make compressing pay, so nothing is tried before somebody had to
     * wait. */
    if (!pace->waited_before || --pace->until_sample)
        return 0;
    if (pace->sample_interval < SAMPLE_RARELY)
        pace->sample_interval *= 2;
    pace->until_sample = pace->sample_interval;
    *sample = true;
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
    pace->compressor = pace->compressor == 0 ? rate : 0.8 * pace->compressor + 0.2 * rate;
    pace->ratio = pace->ratio == 0 ? ratio : 0.8 * pace->ratio + 0.2 * ratio;
}

void lm_pace_written(struct lm_pace *pace, uint64_t bytes, uint64_t waited_ns) {
    uint64_t now = lm_now_ns();
    bool waited = waited_ns > 0;
    /* Between two writes that both had to wait the link was busy all the time. */
    if (waited && pace->waited_before && now > pace->since_ns) {
        double rate = (double)bytes * 1e9 / (double)(now - pace->since_ns);
        double before = (double)atomic_load_explicit(&pace->link, memory_order_relaxed);
        double link = before == 0 ? rate : 0.8 * before + 0.2 * rate;
        if (link * 2 < before)
            pace->sample_interval = pace->until_sample = SAMPLE_FIRST;
        atomic_store_explicit(&pace->link, (uint64_t)link, memory_order_relaxed);
    }
    pace->since_ns = now;
    pace->waited_before = waited;
    if (!pace->compressing) {
        pace->compressing = waited && pays(pace);
        pace->unhindered = 0;
        return;
    }
    if (waited || pace->raw_trial) {
        pace->compressing = pays(pace);
        pace->unhindered = 0;
        return;
    }
    /* The compressor is the limit now. Has the link become faster meanwhile? Raw batches tell. */
    if (++pace->unhindered >= 4 * TRIAL_BATCHES) {
        pace->unhindered = 0;
        pace->raw_trial = TRIAL_BATCHES;
    }
}
