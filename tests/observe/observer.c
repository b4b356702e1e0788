/*
 * Makes itself a random process, and compares what it sees of itself before, while and after it is moved.
 *
 *     observer FOLDER SEED CALLS CHANGING REFUSED [KEPT]
 *
 * From SEED it makes CALLS random changes; KEPT ("0-17,40") are the numbers of those that it makes indeed. It writes
 * down all that it can see, and makes FOLDER/ready. Until FOLDER/moved is there it goes on: with CHANGING, it makes
 * more changes, and sees what has come of each; then it looks again, some milliseconds later, whether anything
 * has changed by itself. FOLDER/result is "passed" or the lines that differ; FOLDER/calls are the changes.
 * With REFUSED it may also draw what cannot be moved.
 */
#include "observer.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#define REPORT (4u << 20)
#define AFTER_THE_MOVE 3
#define MOST_CHANGES 4000
#define MOST_TRIES 10

struct worker {
    pthread_t thread;
    sem_t wake;
    int event;
    unsigned number;
    void (*job)(void *argument);
    void *argument;
    sem_t done;
};

static struct {
    const char *folder;
    uint64_t seed;
    unsigned calls;
    bool changing, refused, complete;
    const char *kept;
    FILE *log;
    unsigned call;
    struct worker workers[WORKERS];
    struct report last, present;
} own;

static __thread unsigned worker_number;

const char *folder(void) {
    return own.folder;
}

unsigned this_worker(void) {
    return worker_number;
}

bool may_be_refused(void) {
    return own.refused;
}

bool is_being_moved(void) {
    return own.call >= own.calls && !own.complete;
}

bool is_complete(void) {
    return own.complete;
}

uint64_t now_of(int clock) {
    struct timespec now = {0};
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t draw(struct draw *from, uint64_t below) {
    uint64_t x = from->state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

void did(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(own.log, "%u [%u] ", own.call, worker_number);
    vfprintf(own.log, format, arguments);
    fputc('\n', own.log);
    va_end(arguments);
}

/* --- the workers --- */

static void wait_for_work(struct worker *one) {
    uint64_t count;
    struct pollfd wanted = {.fd = one->event, .events = POLLIN};
    switch (one->number % 3) {
    case 0:
        while (sem_wait(&one->wake) != 0)
            ;
        break;
    case 1:
        while (poll(&wanted, 1, -1) < 1)
            ;
        __attribute__((fallthrough));
    case 2:
        while (read(one->event, &count, sizeof(count)) < 0)
            ;
        break;
    }
}

static void *work(void *argument) {
    struct worker *one = argument;
    worker_number = one->number;
    for (;;) {
        wait_for_work(one);
        one->job(one->argument);
        sem_post(&one->done);
    }
    return NULL;
}

static void start_workers(void) {
    for (unsigned i = 1; i < WORKERS; i++) {
        struct worker *one = &own.workers[i];
        one->number = i;
        one->event = fcntl(eventfd(0, EFD_CLOEXEC), F_DUPFD_CLOEXEC, 10);
        sem_init(&one->wake, 0, 0);
        sem_init(&one->done, 0, 0);
        if (pthread_create(&one->thread, NULL, work, one) != 0)
            _exit(2);
    }
}

/* Runs something in a thread, and waits for its end. */
static void run_in(unsigned number, void (*job)(void *), void *argument) {
    struct worker *one = &own.workers[number];
    uint64_t one_more = 1;
    if (number == 0) {
        job(argument);
        return;
    }
    one->job = job;
    one->argument = argument;
    if (number % 3 == 0)
        sem_post(&one->wake);
    else if (write(one->event, &one_more, sizeof(one_more)) < 0)
        _exit(2);
    while (sem_wait(&one->done) != 0)
        ;
}

/* --- changes --- */

static const struct aspect *const *const groups[] = {attribute_aspects,  timer_aspects,  memory_aspects,
                                                     descriptor_aspects, socket_aspects, filter_aspects};

/* A group is drawn first, so that one of many aspects does not crowd out the others. */
static const struct aspect *draw_aspect(struct draw *from) {
    const struct aspect *const *group = DRAW_OF(from, groups);
    unsigned count = 0;
    while (group[count])
        count++;
    return group[draw(from, count)];
}

struct change {
    const struct aspect *aspect;
    struct draw from;
};

static void make_change(void *argument) {
    struct change *change = argument;
    change->aspect->change(&change->from);
}

/* "0-17,40": is the number among them? */
static bool is_kept(unsigned number) {
    const char *text = own.kept;
    if (!text)
        return true;
    while (*text) {
        char *end;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        if (number >= first && number <= last)
            return true;
        text = *end == ',' ? end + 1 : "";
    }
    return false;
}

static void call(unsigned number) {
    own.call = number;
    struct change change = {.from = {own.seed * 1000003 + number}};
    draw(&change.from, 2);
    change.aspect = draw_aspect(&change.from);
    unsigned thread = (unsigned)draw(&change.from, WORKERS);
    if (is_kept(number))
        run_in(change.aspect->of_thread ? thread : 0, make_change, &change);
    after_each.change(&change.from);
}

/* --- observations --- */

static void observe_aspects(struct report *report, bool of_thread) {
    for (unsigned group = 0; group < COUNT(groups); group++)
        for (const struct aspect *const *one = groups[group]; *one; one++)
            if ((*one)->of_thread == of_thread && (*one)->observe)
                (*one)->observe(report);
}

static void observe_thread(void *argument) {
    observe_aspects(argument, true);
}

static void observe(struct report *report) {
    report->length = 0;
    observe_aspects(report, false);
    for (unsigned i = 0; i < WORKERS; i++)
        run_in(i, observe_thread, report);
}

/* The end of a line's key, or NULL. */
static const char *key_end(const char *line, const char *end) {
    for (const char *at = line; at + 1 < end; at++)
        if ((*at == ':' || *at == '~') && at[1] == ' ')
            return at;
    return NULL;
}

static bool is_near(const char *before, const char *after) {
    long long was, early, late, is;
    return sscanf(before, "~ %lld %lld %lld", &was, &early, &late) == 3 &&
           sscanf(after, "~ %lld", &is) == 1 && is >= was - early && is <= was + late;
}

static const char *line_end(const char *line) {
    const char *end = strchr(line, '\n');
    return end ? end : line + strlen(line);
}

/* The line of a report that has this key. The n-th line of one is nearly always that of the other. */
static const char *find_key(const char *text, const char *key, size_t length) {
    for (const char *line = text; *line; line = line_end(line) + (*line_end(line) != 0))
        if (strncmp(line, key, length) == 0)
            return line;
    return NULL;
}

static void tell_difference(FILE *out, const char *what, const char *line) {
    fprintf(out, "%s %.*s\n", what, (int)(line_end(line) - line), line);
}

/* Lines of `first` that `second` lacks or has with another value. Returns how many. */
static unsigned compare(FILE *out, const struct report *first, const struct report *second) {
    unsigned found = 0;
    const char *guess = second->text;
    for (const char *line = first->text; *line; line = line_end(line) + (*line_end(line) != 0)) {
        const char *end = line_end(line), *key = key_end(line, end);
        size_t length = key ? (size_t)(key - line) + 1 : (size_t)(end - line);
        const char *other = strncmp(guess, line, length) == 0 ? guess : find_key(second->text, line, length);
        if (other)
            guess = line_end(other) + (*line_end(other) != 0);
        if (other && line_end(other) - other == end - line && strncmp(line, other, (size_t)(end - line)) == 0)
            continue;
        if (other && key && *key == '~' && is_near(line + length - 1, other + length - 1))
            continue;
        found++;
        tell_difference(out, "-", line);
        if (other)
            tell_difference(out, "+", other);
    }
    for (const char *line = second->text; *line; line = line_end(line) + (*line_end(line) != 0)) {
        const char *key = key_end(line, line_end(line));
        if (key && !find_key(first->text, line, (size_t)(key - line) + 1)) {
            found++;
            tell_difference(out, "+", line);
        }
    }
    return found;
}

static void say_result(const char *text, size_t length) {
    char unfinished[512], result[512];
    fflush(own.log);
    snprintf(unfinished, sizeof(unfinished), "%s/result.unfinished", own.folder);
    snprintf(result, sizeof(result), "%s/result", own.folder);
    FILE *file = fopen(unfinished, "we");
    if (!file || fwrite(text, 1, length, file) != length || fclose(file) != 0 ||
        rename(unfinished, result) != 0)
        _exit(2);
    _exit(0);
}

/* Observes once more, and ends if something is not as it was. */
static void look_again(const char *when) {
    char *text = NULL;
    size_t length = 0;
    observe(&own.present);
    if (strcmp(own.last.text, own.present.text) == 0)
        return;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "failed: %s (last call %u)\n", when, own.call);
    unsigned found = compare(out, &own.last, &own.present);
    fclose(out);
    if (found)
        say_result(text, length);
    free(text);
    /* What it takes of the processor's time to look so often adds up. */
    struct report before = own.last;
    own.last = own.present;
    own.present = before;
}

static void pause_for(long microseconds) {
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

/* Observes until nothing changes any more. What the process closes while lm-serve reads it is gone a little later, for
 * lm-serve holds a duplicate: a pipe's other end, a descriptor in an epoll set. */
static void settle(void) {
    observe(&own.last);
    for (unsigned tries = 0, found = 1; found && tries < MOST_TRIES; tries++) {
        char *text = NULL;
        size_t length = 0;
        FILE *out = open_memstream(&text, &length);
        pause_for(4000);
        observe(&own.present);
        found = compare(out, &own.last, &own.present);
        fclose(out);
        free(text);
        struct report before = own.last;
        own.last = own.present;
        own.present = before;
    }
}

static bool exists(const char *name) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", own.folder, name);
    return access(path, F_OK) == 0;
}

/* What is needed all the time keeps its room, so that observing changes nothing that is observed. */
static void make_room(struct report *report) {
    report->size = REPORT;
    report->text = malloc(REPORT);
    if (!report->text)
        _exit(2);
    memset(report->text, 0, REPORT);
}

static void begin(char **argv, int argc) {
    char path[512];
    own.folder = argv[1];
    own.seed = strtoull(argv[2], NULL, 10);
    own.calls = (unsigned)strtoul(argv[3], NULL, 10);
    own.changing = atoi(argv[4]);
    own.refused = atoi(argv[5]);
    own.kept = argc > 6 ? argv[6] : NULL;
    snprintf(path, sizeof(path), "%s/calls", own.folder);
    own.log = fopen(path, "we");
    if (!own.log)
        _exit(2);
    static char buffer[1 << 16];
    setvbuf(own.log, buffer, _IOFBF, sizeof(buffer));
    make_room(&own.last);
    make_room(&own.present);
    sigset_t queued;
    sigemptyset(&queued);
    for (int i = 0; i < QUEUED; i++)
        sigaddset(&queued, FIRST_QUEUED + i);
    sigprocmask(SIG_BLOCK, &queued, NULL);
    const char *folders[] = {"one", "two", "three"};
    for (unsigned i = 0; i < COUNT(folders); i++) {
        snprintf(path, sizeof(path), "%s/%s", own.folder, folders[i]);
        mkdir(path, 0777);
    }
    start_workers();
}

int main(int argc, char **argv) {
    if (argc < 6)
        return 2;
    begin(argv, argc);
    unsigned next = 0;
    while (next < own.calls)
        call(next++);
    observe(&own.last);
    look_again("before anything happened: this cannot be observed");
    char path[512];
    snprintf(path, sizeof(path), "%s/ready", own.folder);
    fflush(own.log);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    for (int after = 0; after < AFTER_THE_MOVE;) {
        after += own.complete = exists("moved");
        if (own.changing && next < own.calls + MOST_CHANGES) {
            call(next++);
            settle();
        }
        /* So long that the freeze mostly falls between two looks with no call between them. */
        pause_for(own.changing ? 20000 : 3000);
        look_again(after ? "after the move" : "while it was moved");
    }
    say_result("passed\n", 7);
}
