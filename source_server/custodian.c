/*
 * The source's custodian (custody.h): a program of its own, so that it has none of lm-serve's memory and none of its
 * descriptors but those that are named to it.
 *
 *     lm-custodian MEMORY CONNECTION LISTENER COMMAND LIFELINE KEPT... -- WORD...
 *
 * Numbers of descriptors, all but LISTENER and CONNECTION open: a file with struct lm_custody, the DECISION connection, where
 * to let a new one in, a unix socket that takes connections for lm-serve (wire/decision.h), a pipe whose other end
 * lm-serve alone holds, and what else is to stay open. WORD...: the command that takes away what a dead lm-serve has
 * left in the process, to which the numbers of leftover.h are added.
 *
 * It exits with 1 when the threads' word could not be written, with 2 when it could not begin.
 */
#define _GNU_SOURCE
#include "kernel/arch/arch.h"
#include "kernel/own_name.h"
#include "process/descriptors/held_table.h"
#include "source_server/custody.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_MS = 200, MOST_KEPT = 64, LEFTOVER_NUMBERS = 3, NUMBER_ROOM = 17, LIFELINE = 4, NAMED = 5 };

extern char **environ;

struct custodian {
    struct lm_custody *custody;
    int memory, connection, listener, command, lifeline;
    /* Of the command for what is left, with room for its numbers and a null pointer. */
    char **words;
    size_t word_count;
};

static uint32_t load(const uint32_t *place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

static uint64_t now_ns(void) {
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* When a freeze lasts beyond its deadline, bring lm-serve's end about: it wakes up to a decision. */
static void keep_deadline(struct lm_custody *custody) {
    uint64_t deadline = __atomic_load_n(&custody->deadline_ns, __ATOMIC_SEQ_CST);

    if (deadline != 0 && now_ns() > deadline && lm_decision_decide(&custody->decision, LM_DECISION_NO))
        kill(custody->serve, SIGKILL);
}

static void run_held(const struct lm_custody *custody, int table) {
    if (load(&custody->held) != 0)
        lm_held_run(custody->held_file, table);
}

/* Start the command for what a dead lm-serve has left in the process's memory, if there is anything. */
static void take_away(const struct custodian *own) {
    const struct lm_leftover *leftover = &own->custody->leftover;
    char numbers[LEFTOVER_NUMBERS][NUMBER_ROOM];
    posix_spawn_file_actions_t actions;
    pid_t child = 0;

    if (__atomic_load_n(&leftover->length, __ATOMIC_SEQ_CST) == 0 || own->word_count == 0)
        return;
    const uint64_t told[LEFTOVER_NUMBERS] = {leftover->pid, leftover->address, leftover->length};
    for (int i = 0; i < LEFTOVER_NUMBERS; i++) {
        snprintf(numbers[i], NUMBER_ROOM, "%llx", (unsigned long long)told[i]);
        own->words[own->word_count + (size_t)i] = numbers[i];
    }
    if (posix_spawn_file_actions_init(&actions) != 0)
        return;
    for (int number = 0; number < 3; number++)
        posix_spawn_file_actions_addopen(&actions, number, "/dev/null", O_RDWR, 0);
    posix_spawn(&child, own->words[0], &actions, NULL, own->words, environ);
    posix_spawn_file_actions_destroy(&actions);
}

/* What lm-serve's end has left to do. The descriptors are as they were before the threads go home. 0 or -errno. */
static int take_over(const struct custodian *own) {
    struct lm_custody *custody = own->custody;
    const bool stay = !lm_decision_decide(&custody->decision, LM_DECISION_NO);
    const uint64_t flag_address = __atomic_load_n(&custody->flag_address, __ATOMIC_SEQ_CST);

    int error = 0;

    run_held(custody, stay ? LM_HELD_COMMIT : LM_HELD_UNDO);
    if (flag_address != 0)
        error = lm_park_decide(custody->pid, flag_address, stay ? LM_PARK_STAY : LM_PARK_GO_HOME);
    if (!stay)
        take_away(own);
    return error;
}

static uint32_t word_for(uint32_t decided) {
    switch (decided) {
    case LM_DECISION_COMMIT:
        return LM_WORD_COMMIT;
    case LM_DECISION_NO:
        return LM_WORD_NO;
    default:
        return LM_WORD_UNDECIDED;
    }
}

/* Answer what was asked, note what is reported, and tell what was decided until it is known that it was heard. */
static void converse(struct lm_custody *custody, struct lm_decision_line *line) {
    struct lm_decision *decision = &custody->decision;
    struct lm_word word;

    lm_decision_admit(line);
    while (lm_decision_take(line, &word) == 1) {
        if (word.kind == LM_WORD_ASK) {
            lm_decision_say(line, word_for(load(&decision->decided)), word.number, 0);
            continue;
        }
        __atomic_store_n(&decision->heard, word.kind, __ATOMIC_SEQ_CST);
        lm_decision_say(line, LM_WORD_ACKNOWLEDGED, 0, 0);
    }
    if (load(&custody->at_stake) != 0 && load(&decision->heard) == 0 &&
        load(&decision->decided) != LM_DECISION_UNDECIDED)
        lm_decision_keep_saying(line, word_for(load(&decision->decided)));
}

/* Whether nobody waits for what was decided any more. */
static bool is_over(const struct lm_custody *custody) {
    return load(&custody->at_stake) == 0 || load(&custody->decision.heard) != 0;
}

/* Remove an open file by its name, if it has one. */
static void remove_file(int descriptor) {
    char link[sizeof "/proc/self/fd/" + NUMBER_ROOM], path[PATH_MAX];
    struct stat opened, named;

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = '\0';
    if (fstat(descriptor, &opened) == 0 && lstat(path, &named) == 0 && opened.st_dev == named.st_dev &&
        opened.st_ino == named.st_ino)
        unlink(path);
}

/* Until lm-serve's end of the lifeline is closed, and whatever is to be told then is told. 0 or -errno. */
static int watch(const struct custodian *own) {
    struct lm_custody *custody = own->custody;
    struct pollfd watched[LM_WORD_STRANGERS + 3] = {{.fd = own->lifeline, .events = POLLIN}};
    struct lm_decision_line line;
    int error = 0;

    lm_decision_open(&line, &custody->decision, own->connection, own->listener);
    line.command = own->command;
    while (watched[0].fd >= 0 || !is_over(custody)) {
        poll(watched, 1 + lm_decision_watch(&line, watched + 1), WATCH_MS);
        if (watched[0].fd >= 0)
            keep_deadline(custody);
        if (watched[0].fd >= 0 && watched[0].revents != 0) {
            watched[0].fd = -1;
            error = take_over(own);
        }
        converse(custody, &line);
    }
    if (error != 0)
        return error;
    __atomic_store_n(&custody->over, 1, __ATOMIC_SEQ_CST);
    /* Nobody asks any more about a process that was not handed over, and a killed lm-serve has removed nothing. */
    if (load(&custody->decision.decided) == LM_DECISION_NO) {
        remove_file(custody->held_file);
        remove_file(own->memory);
    }
    return 0;
}

static int ascending(const void *one, const void *other) {
    const int first = *(const int *)one, second = *(const int *)other;

    return (first > second) - (first < second);
}

/* Whatever else came from lm-serve, its standard output above all, must close when that ends; the command for what is
 * left gets nothing. 0 or -1. */
static int close_others(int *kept, size_t count) {
    unsigned int low = 0;

    qsort(kept, count, sizeof *kept, ascending);
    for (size_t i = 0; i < count; i++) {
        if (kept[i] < 0 || (unsigned int)kept[i] < low)
            continue;
        if ((unsigned int)kept[i] > low && close_range(low, (unsigned int)kept[i] - 1, 0) != 0)
            return -1;
        low = (unsigned int)kept[i] + 1;
        if (fcntl(kept[i], F_SETFD, FD_CLOEXEC) != 0)
            return -1;
    }
    return close_range(low, ~0U, 0);
}

/* The words behind "--", in memory of their own: the arguments' is about to hold another name. 0 or -1. */
static int copy_words(struct custodian *own, char **words, size_t count) {
    own->words = calloc(count + LEFTOVER_NUMBERS + 1, sizeof *own->words);
    for (size_t i = 0; own->words != NULL && i < count; i++) {
        own->words[i] = strdup(words[i]);
        if (own->words[i] == NULL)
            return -1;
    }
    own->word_count = count;
    return own->words != NULL ? 0 : -1;
}

int main(int count, char **arguments) {
    struct custodian own = {0};
    int numbers[MOST_KEPT] = {0};
    int at = 1;

    for (; at < count && at <= MOST_KEPT && strcmp(arguments[at], "--") != 0; at++)
        numbers[at - 1] = (int)strtol(arguments[at], NULL, 10);
    if (at <= NAMED || at >= count || strcmp(arguments[at], "--") != 0)
        return 2;
    own.memory = numbers[0];
    own.connection = numbers[1];
    own.listener = numbers[2];
    own.command = numbers[3];
    own.lifeline = numbers[LIFELINE];
    own.custody = mmap(NULL, sizeof *own.custody, PROT_READ | PROT_WRITE, MAP_SHARED, own.memory, 0);
    if (own.custody == MAP_FAILED || copy_words(&own, arguments + at + 1, (size_t)(count - at - 1)) != 0)
        return 2;
    for (const int *number = (const int[]){SIGINT, SIGTERM, SIGHUP, SIGPIPE, 0}; *number != 0; number++)
        signal(*number, SIG_IGN);
    lm_own_name("lm-custodian", "carries out and tells what was decided");
    if (close_others(numbers, (size_t)at - 1) != 0)
        return 2;
    return watch(&own) == 0 ? 0 : 1;
}
