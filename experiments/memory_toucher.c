/*
 * The workload "toucher": works on its memory page by page, knows what each page must hold, and keeps the
 * time of everything it does in a file that is mapped shared, so that what it writes there does not move with
 * it.
 *
 * An operation takes one page. A read computes the page's content from its number and the sequence number of
 * its last write and compares it; a write gives it the next sequence number and new content. The sequence
 * numbers stand in the file, so a page that was lost, mixed up or put back to an older state does not go
 * unseen. At the end every page is compared once more.
 *
 *     memory_toucher FILE name=value ...
 *
 * size           bytes of memory in all, shared out among the threads
 * working-set    the share of it that is worked on, 0 to 1
 * locality       0 uniform, 1 zipf (exponent 0.99), 2 sequential
 * write-share    of the operations, 0 to 1; where dirty-rate is not given
 * dirty-rate     bytes of pages written per second by all threads; everything else is read
 * compressible   the share of a page that is the same word again and again, 0 to 1
 * threads        how many work
 * work           how often an operation goes through its page: its length
 * step           nanoseconds of a step of the timeline
 * seconds        how long the timeline is; after it nothing more is kept
 * measure        0: only count operations, to see what measuring costs
 *
 * The file's layout is struct header, then for each thread struct lane with its arrays;
 * experiments/workload_toucher.py reads it. Times are CLOCK_REALTIME in nanoseconds, which two machines share.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

enum {
    WORDS = PAGE / 8,
    BUCKETS = 1280,
    FINE_BITS = 5,     /* 32 buckets for each doubling: 3 percent */
    SLOW_NS = 20000,   /* what takes longer is kept one by one */
    SLOW = 1 << 20,    /* how many of them at most, for each thread */
    DEBT_NS = 10000000 /* writes that a stop has kept from happening are caught up with only this far */
};

enum { UNIFORM, ZIPF, SEQUENTIAL };
enum { RUNNING = 1, VERIFIED = 2, WRONG = 3 };

struct header {
    uint64_t magic, begin, step, steps, threads, pages; /* pages: of each thread */
    volatile uint64_t command;                          /* 1: stop and verify */
    volatile uint64_t phase;                            /* which of a lane's two histograms is filled */
    volatile uint64_t state, wrong;
    uint64_t buckets, slow, lane; /* lane: bytes of a lane */
    volatile uint64_t measure;    /* 0: only count, also set from outside to see what measuring costs */
    uint64_t unused[PAGE / 8 - 14];
};

struct slow {
    uint64_t end, took;
};

/* Behind it: uint32_t timeline[steps], uint32_t sequences[pages], each rounded up to whole pages. */
struct lane {
    volatile uint64_t operations, writes, slow_count;
    uint64_t unused[PAGE / 8 - 3];
    uint64_t histogram[2][BUCKETS];
    struct slow slow[SLOW];
};

struct settings {
    double size, working_set, locality, write_share, dirty_rate, compressible, threads, work, step, seconds,
        measure;
};

struct zipf {
    double theta, alpha, zeta, eta, half;
};

struct worker {
    const struct settings *settings;
    struct header *header;
    struct lane *lane;
    uint32_t *timeline, *sequences;
    char *memory;
    uint64_t first, pages, working, seed, next, constant_from, scatter;
    double write_ns; /* nanoseconds from one write to the next; 0: by share, negative: never */
    struct zipf zipf;
};

static uint64_t real_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t rounded(uint64_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static uint64_t bucket_of(uint64_t value) {
    if (value < 2u << FINE_BITS)
        return value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - FINE_BITS;
    uint64_t found = ((uint64_t)shift << FINE_BITS) + (value >> shift);
    return found < BUCKETS ? found : BUCKETS - 1;
}

/* Where a page's content begins: never 0, from which next_random would not move. */
static uint64_t seed_of(uint64_t page, uint64_t sequence) {
    uint64_t seed = (page << 32 | sequence) * 0x9e3779b97f4a7c15u;
    return (seed ^ seed >> 29) | 1;
}

static void write_page(const struct worker *worker, uint64_t page) {
    volatile uint64_t *words = (volatile uint64_t *)(worker->memory + page * PAGE);
    uint64_t sequence = ++worker->sequences[page], seed = seed_of(worker->first + page, sequence);
    for (int turn = 0; turn < (int)worker->settings->work; turn++) {
        uint64_t value = seed;
        for (uint64_t i = 0; i < worker->constant_from; i++)
            words[i] = next_random(&value);
        for (uint64_t i = worker->constant_from; i < WORDS; i++)
            words[i] = value;
    }
}

static int page_is_right(const struct worker *worker, uint64_t page) {
    const volatile uint64_t *words = (const volatile uint64_t *)(worker->memory + page * PAGE);
    uint64_t seed = seed_of(worker->first + page, worker->sequences[page]), different = 0;
    for (int turn = 0; turn < (int)worker->settings->work; turn++) {
        uint64_t value = seed;
        for (uint64_t i = 0; i < worker->constant_from; i++)
            different |= words[i] ^ next_random(&value);
        for (uint64_t i = worker->constant_from; i < WORDS; i++)
            different |= words[i] ^ value;
    }
    return !different;
}

/* Numbers 0 to count - 1, the first ones most often (Gray and others, SIGMOD 1994, section 3.2). */
static void zipf_init(struct zipf *zipf, uint64_t count) {
    zipf->theta = 0.99;
    zipf->zeta = 0;
    for (uint64_t i = 1; i <= count; i++)
        zipf->zeta += pow((double)i, -zipf->theta);
    zipf->half = pow(0.5, zipf->theta);
    zipf->alpha = 1 / (1 - zipf->theta);
    zipf->eta = (1 - pow(2.0 / (double)count, 1 - zipf->theta)) / (1 - (1 + zipf->half) / zipf->zeta);
}

static uint64_t zipf_next(const struct zipf *zipf, uint64_t count, uint64_t *seed) {
    double share = (double)(next_random(seed) >> 11) / 9007199254740992.0, scaled = share * zipf->zeta;
    if (scaled < 1)
        return 0;
    if (scaled < 1 + zipf->half)
        return 1;
    uint64_t found = (uint64_t)((double)count * pow(zipf->eta * share - zipf->eta + 1, zipf->alpha));
    return found < count ? found : count - 1;
}

static uint64_t greatest_divisor(uint64_t a, uint64_t b) {
    return b ? greatest_divisor(b, a % b) : a;
}

static uint64_t choose(struct worker *worker) {
    switch ((int)worker->settings->locality) {
    case ZIPF: /* neighbours in frequency are not neighbours in memory */
        return zipf_next(&worker->zipf, worker->working, &worker->seed) * worker->scatter % worker->working;
    case SEQUENTIAL:
        return worker->next++ % worker->working;
    default:
        return next_random(&worker->seed) % worker->working;
    }
}

static void keep_time(const struct worker *worker, uint64_t begin, uint64_t end) {
    uint64_t took = end - begin, step = (end - worker->header->begin) / worker->header->step;
    struct lane *lane = worker->lane;
    if (step < worker->header->steps)
        worker->timeline[step]++;
    lane->histogram[worker->header->phase & 1][bucket_of(took)]++;
    if (took >= SLOW_NS && lane->slow_count < SLOW) {
        lane->slow[lane->slow_count] = (struct slow){end, took};
        lane->slow_count++;
    }
}

/* Whether this operation writes. `due`: when the next write is, in nanoseconds, kept by the caller. */
static int is_write(struct worker *worker, uint64_t now, double *due) {
    if (worker->write_ns == 0)
        return (double)(next_random(&worker->seed) >> 11) / 9007199254740992.0 <
               worker->settings->write_share;
    if (worker->write_ns < 0 || (double)now < *due)
        return 0;
    *due += worker->write_ns;
    if (*due < (double)now - DEBT_NS)
        *due = (double)now - DEBT_NS;
    return 1;
}

static void *work(void *given) {
    struct worker *worker = given;
    struct header *header = worker->header;
    int paced = worker->write_ns > 0;
    uint64_t last = real_ns(), wrong = 0;
    double due = (double)last;
    while (header->command == 0) {
        uint64_t page = choose(worker);
        if (is_write(worker, last, &due)) {
            write_page(worker, page);
            worker->lane->writes++;
        } else {
            wrong += !page_is_right(worker, page);
        }
        worker->lane->operations++;
        if (header->measure || paced) {
            uint64_t now = real_ns();
            if (header->measure)
                keep_time(worker, last, now);
            last = now;
        }
    }
    for (uint64_t page = 0; page < worker->pages; page++)
        wrong += !page_is_right(worker, page);
    __atomic_fetch_add(&header->wrong, wrong, __ATOMIC_RELAXED);
    return NULL;
}

static void set(struct settings *settings, const char *word) {
    static const char *const names[] = {"size",       "working-set",  "locality", "write-share",
                                        "dirty-rate", "compressible", "threads",  "work",
                                        "step",       "seconds",      "measure"};
    double *value = &settings->size;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i]);
        if (!strncmp(word, names[i], length) && word[length] == '=') {
            value[i] = strtod(word + length + 1, NULL);
            return;
        }
    }
    fprintf(stderr, "memory_toucher: %s: there is no such setting\n", word);
    exit(2);
}

static struct header *map_file(const char *path, uint64_t size) {
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, (off_t)size))
        fail(path);
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        fail(path);
    close(file);
    return mapped;
}

static void prepare(struct worker *worker, const struct settings *settings, struct header *header,
                    uint64_t number, char *memory) {
    uint64_t pages = header->pages;
    char *lane = (char *)(header + 1) + number * header->lane;
    *worker =
        (struct worker){.settings = settings, .header = header, .first = number * pages, .pages = pages};
    worker->lane = (struct lane *)lane;
    worker->timeline = (uint32_t *)(lane + rounded(sizeof(struct lane)));
    worker->sequences = worker->timeline + rounded(header->steps * 4) / 4;
    worker->memory = memory + number * pages * PAGE;
    worker->working = (uint64_t)((double)pages * settings->working_set);
    worker->working = worker->working ? worker->working : 1;
    worker->seed = seed_of(number + 1, 7);
    worker->constant_from = (uint64_t)(WORDS * (1 - settings->compressible));
    worker->write_ns = settings->dirty_rate < 0    ? 0
                       : settings->dirty_rate == 0 ? -1
                                                   : 1e9 * PAGE * settings->threads / settings->dirty_rate;
    for (worker->scatter = 2654435761u; greatest_divisor(worker->scatter, worker->working) != 1;)
        worker->scatter++;
    if ((int)settings->locality == ZIPF)
        zipf_init(&worker->zipf, worker->working);
    for (uint64_t page = 0; page < pages; page++)
        write_page(worker, page);
    /* Every page of the file that is written later exists: no other costs fall into the measurement. */
    for (char *at = lane; at < lane + header->lane; at += PAGE)
        if (at < (char *)worker->lane->slow || at >= (char *)worker->timeline)
            *(volatile char *)at += 0;
}

int main(int argc, char **argv) {
    /* The order of struct settings. */
    struct settings settings = {67108864, 0.5, UNIFORM, 0.2, -1, 0.5, 1, 6, 1e7, 120, 1};
    for (int i = 2; i < argc; i++)
        set(&settings, argv[i]);
    uint64_t threads = (uint64_t)settings.threads;
    if (argc < 2 || threads < 1 || threads > 64 || settings.size < (double)(threads * PAGE))
        return 2;
    uint64_t pages = (uint64_t)settings.size / PAGE / threads;
    uint64_t steps = (uint64_t)(settings.seconds * 1e9 / settings.step);
    uint64_t lane = rounded(sizeof(struct lane)) + rounded(steps * 4) + rounded(pages * 4);
    struct header *header = map_file(argv[1], sizeof *header + threads * lane);
    header->magic = 0x6c6d2d746f756368u;
    header->step = (uint64_t)settings.step;
    header->steps = steps;
    header->threads = threads;
    header->pages = pages;
    header->buckets = BUCKETS;
    header->slow = SLOW;
    header->lane = lane;
    header->measure = settings.measure != 0;
    char *memory = mmap(NULL, threads * pages * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct worker *workers = calloc(threads, sizeof *workers);
    pthread_t ids[64];
    if (memory == MAP_FAILED || !workers)
        fail("memory");
    madvise(memory, threads * pages * PAGE, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < threads; i++)
        prepare(&workers[i], &settings, header, i, memory);
    header->begin = real_ns();
    header->state = RUNNING;
    for (uint64_t i = 1; i < threads; i++)
        if (pthread_create(&ids[i], NULL, work, &workers[i]))
            fail("pthread_create");
    work(&workers[0]);
    for (uint64_t i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
    header->state = header->wrong ? WRONG : VERIFIED;
    return header->wrong ? 3 : 0;
}
