#include "pager/statistics.h"

enum { SUB_BITS = 4, SUB = 1 << SUB_BITS };

static unsigned bucket_of(uint64_t value) {
    if (value < SUB)
        return (unsigned)value;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(value);
    return (exponent - SUB_BITS + 1) * SUB + (unsigned)(value >> (exponent - SUB_BITS) & (SUB - 1));
}

/* The largest value that falls into the bucket. */
static uint64_t end_of(unsigned bucket) {
    if (bucket < SUB)
        return bucket;
    unsigned shift = bucket / SUB - 1;
    return ((uint64_t)(SUB + bucket % SUB + 1) << shift) - 1;
}

void lm_histogram_add(struct lm_histogram *histogram, uint64_t value) {
    lm_count(&histogram->buckets[bucket_of(value)], 1);
    lm_count(&histogram->count, 1);
    lm_count(&histogram->sum, value);
    if (value > __atomic_load_n(&histogram->maximum, __ATOMIC_RELAXED))
        __atomic_store_n(&histogram->maximum, value, __ATOMIC_RELAXED);
}

uint64_t lm_histogram_quantile(const struct lm_histogram *histogram, double share) {
    uint64_t count = 0, seen = 0;
    for (unsigned i = 0; i < LM_HISTOGRAM_BUCKETS; i++)
        count += __atomic_load_n(&histogram->buckets[i], __ATOMIC_RELAXED);
    double wanted = share * (double)count;
    for (unsigned i = 0; i < LM_HISTOGRAM_BUCKETS; i++) {
        seen += __atomic_load_n(&histogram->buckets[i], __ATOMIC_RELAXED);
        if (seen && (double)seen >= wanted) {
            uint64_t maximum = __atomic_load_n(&histogram->maximum, __ATOMIC_RELAXED), end = end_of(i);
            return end < maximum ? end : maximum;
        }
    }
    return 0;
}
