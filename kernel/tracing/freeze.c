#define _GNU_SOURCE
#include "kernel/tracing/freeze.h"

#include "kernel/arch/arch.h"
#include "kernel/tracing/never_restarted.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

/* A freeze in progress. A thread with status 0 is seized and interrupted, but has not been waited for. */
struct freeze {
    int pid;
    const int32_t *seized;
    size_t seized_count;
    uint64_t options;
    struct lm_frozen *threads;
    size_t capacity;
    size_t count;
};

static void close_directory(DIR **directory) {
    if (*directory != NULL)
        closedir(*directory);
}

static int is_known(const struct freeze *freeze, int tid) {
    for (size_t i = freeze->count; i-- > 0;) {
        if (freeze->threads[i].tid == tid)
            return 1;
    }
    return 0;
}

static int is_seized(const struct freeze *freeze, int tid) {
    for (size_t i = 0; i < freeze->seized_count; i++) {
        if (freeze->seized[i] == tid)
            return 1;
    }
    return 0;
}

static char thread_state(int pid, int tid) {
    char path[64];
    char text[512] = {0};
    const char *name_end = NULL;
    FILE *file = NULL;
    size_t length = 0;

    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
    file = fopen(path, "re");
    if (file == NULL)
        return 'X';
    length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    name_end = length == 0 ? NULL : strrchr(text, ')');
    return name_end == NULL || name_end[1] == '\0' ? 'X' : name_end[2];
}

/* Seize a thread and interrupt it; *added tells whether it will stop. A thread that has ended does not count. */
static int query_thread(struct freeze *freeze, int tid, int *added) {
    int error = 0;

    if (!is_seized(freeze, tid)) {
        error = lm_trace(PTRACE_SEIZE, tid, freeze->options);
        if (error == -ESRCH || (error == -EPERM && strchr("ZX", thread_state(freeze->pid, tid)) != NULL))
            return 0;
    } else if (strchr("ZX", thread_state(freeze->pid, tid)) != NULL) {
        return 0;
    }
    if (error != 0)
        return error;
    freeze->threads[freeze->count++] = (struct lm_frozen){.tid = tid, .status = 0};
    *added = 1;
    error = lm_trace(PTRACE_INTERRUPT, tid, 0);
    return error == -ESRCH ? 0 : error;
}

/* One pass over /proc/PID/task: seize and interrupt new threads. */
static int query_new_threads(struct freeze *freeze, int *added) {
    __attribute__((cleanup(close_directory))) DIR *directory = NULL;
    char path[64];

    *added = 0;
    snprintf(path, sizeof path, "/proc/%d/task", freeze->pid);
    directory = opendir(path);
    if (directory == NULL)
        return errno == ENOENT ? -ESRCH : -errno;
    for (;;) {
        const struct dirent *entry = NULL;
        int tid = 0;
        int error = 0;

        errno = 0;
        entry = readdir(directory);
        if (entry == NULL)
            return errno == ENOENT ? -ESRCH : -errno;
        tid = atoi(entry->d_name);
        if (tid <= 0 || is_known(freeze, tid))
            continue;
        if (freeze->count == freeze->capacity)
            return -ENOBUFS;
        error = query_thread(freeze, tid, added);
        if (error != 0)
            return error;
    }
}

/* Wait for every thread that was interrupted. Those that ended instead are left out. */
static int wait_for_threads(struct freeze *freeze, int timeout_ms) {
    for (size_t i = 0; i < freeze->count; i++) {
        struct lm_frozen *thread = &freeze->threads[i];
        int error = 0;

        if (thread->status != 0)
            continue;
        error = lm_trace_stop(thread->tid, 0, timeout_ms, &thread->status);
        if (error == -ESRCH)
            *thread = freeze->threads[--freeze->count], i--;
        else if (error != 0)
            return error;
    }
    return 0;
}

/* Nothing of a failed freeze stays: a thread that was not traced before is not traced afterwards. */
static void give_up(struct freeze *freeze) {
    for (size_t i = 0; i < freeze->count; i++) {
        struct lm_frozen *thread = &freeze->threads[i];
        int was_seized = is_seized(freeze, thread->tid);

        /* A thread that could not be stopped cannot be detached now: its tracer's end will do it. A short wait
         * catches those that nobody had waited for. */
        if (thread->status == 0 && lm_trace_stop(thread->tid, 0, 100, &thread->status) != 0)
            continue;
        lm_thaw(thread, 1, !was_seized);
    }
    freeze->count = 0;
}

int lm_freeze(int pid, const int32_t *seized, size_t seized_count, uint64_t options, int timeout_ms,
              struct lm_frozen *threads, size_t capacity, size_t *count) {
    struct freeze freeze = {.pid = pid,
                            .seized = seized,
                            .seized_count = seized_count,
                            .options = options,
                            .threads = threads,
                            .capacity = capacity};
    int added = 1;
    int error = 0;

    /* When every thread that a pass has found is stopped and the next pass finds no other, no thread is left that
     * could make one. */
    while (error == 0 && added) {
        error = query_new_threads(&freeze, &added);
        if (error == 0)
            error = wait_for_threads(&freeze, timeout_ms);
    }
    if (error == 0 && freeze.count == 0)
        error = -ESRCH;
    if (error != 0)
        give_up(&freeze);
    *count = freeze.count;
    return error;
}

/* Whether a handler of a signal that has come meanwhile is going to run in this thread: perhaps another
 * thread will take a signal that was sent to the process. The sets are those of proc_pid_status(5). */
static int handler_will_run(int tid) {
    unsigned long long own = 0, shared = 0, blocked = 0, caught = 0;
    char path[64];
    char *line = NULL;
    size_t room = 0;
    FILE *file = NULL;

    snprintf(path, sizeof path, "/proc/%d/status", tid);
    file = fopen(path, "re");
    if (file == NULL)
        return 0;
    while (getline(&line, &room, file) > 0) {
        sscanf(line, "SigPnd: %llx", &own);
        sscanf(line, "ShdPnd: %llx", &shared);
        sscanf(line, "SigBlk: %llx", &blocked);
        sscanf(line, "SigCgt: %llx", &caught);
    }
    free(line);
    fclose(file);
    return ((own | shared) & ~blocked & caught) != 0;
}

/* A call that the stop has ended is made again, unless a handler runs: its author expects the EINTR. */
static void undo_interruption(int tid) {
    struct user_regs_struct registers;

    if (lm_trace_get_registers(tid, &registers) != 0)
        return;
    if (lm_arch_result(&registers) != -EINTR || !lm_never_restarted(lm_arch_syscall_number(&registers)))
        return;
    if (handler_will_run(tid))
        return;
    lm_arch_rewind(&registers);
    lm_trace_set_registers(tid, &registers);
}

int lm_thaw(const struct lm_frozen *threads, size_t count, int detach) {
    int first_error = 0;

    for (size_t i = 0; i < count; i++) {
        int error = 0;

        undo_interruption(threads[i].tid);
        error = lm_trace_release(threads[i].tid, threads[i].status, detach);
        if (error != 0 && error != -ESRCH && first_error == 0)
            first_error = error;
    }
    return first_error;
}
