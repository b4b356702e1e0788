#define _GNU_SOURCE
#include "process/descriptors/held_table.h"

#include "kernel/pidfd.h"
#include "process/descriptors/tcp_repair.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct run {
    int source;     /* a pidfd */
    const int *own; /* or NULL */
    uint32_t index; /* of the descriptor that was fetched last */
    int fetched;
    const struct lm_held_descriptor *descriptors;
    const int32_t *sockets;
    const unsigned char *data;
    unsigned char *room;
};

static int fetch_anew(const struct run *run, uint32_t index) {
    const struct lm_held_descriptor *wanted = &run->descriptors[index];
    struct stat status;
    int number = wanted->spared != 0 ? -ENOENT : lm_pidfd_getfd(run->source, wanted->number);

    if (number < 0 && wanted->spared == 0 && run->own && run->own[index] >= 0)
        number = fcntl(run->own[index], F_DUPFD_CLOEXEC, 0);
    if (number < 0)
        return number;
    if (fstat(number, &status) == 0 && status.st_ino == wanted->inode)
        return number;
    close(number);
    return -ENOENT;
}

static void leave(struct run *run) {
    if (run->fetched >= 0)
        close(run->fetched);
    run->fetched = -1;
    run->index = LM_HELD_NO_DESCRIPTOR;
}

/* The descriptor that a row is about, in this process; -errno where there is nothing to be done to it. It is kept for
 * the rows after it that are about the same one. */
static int fetch(struct run *run, uint32_t index) {
    if (run->index != index) {
        leave(run);
        run->fetched = fetch_anew(run, index);
        run->index = index;
    }
    return run->fetched;
}

static long call(const struct run *run, const struct lm_held_row *row, int descriptor, long result) {
    long arguments[LM_HELD_ARGUMENTS];

    for (int i = 0; i < LM_HELD_ARGUMENTS; i++) {
        switch (row->kinds[i]) {
        case LM_HELD_DESCRIPTOR:
            arguments[i] = descriptor;
            break;
        case LM_HELD_RESULT:
            arguments[i] = result;
            break;
        case LM_HELD_DATA:
            arguments[i] = (long)(run->data + row->arguments[i]);
            break;
        case LM_HELD_RULES:
        case LM_HELD_ROUTES:
            arguments[i] = run->sockets[row->kinds[i] - LM_HELD_RULES];
            break;
        case LM_HELD_BUFFER:
            arguments[i] = (long)run->room;
            break;
        default:
            arguments[i] = (long)row->arguments[i];
        }
    }
    return syscall(row->call, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                   arguments[5]);
}

/* Write to a connection what has not been written yet. */
static void write_once(const struct run *run, const struct lm_held_row *row, int descriptor) {
    const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

    if (descriptor < 0 || lm_tcp_written(descriptor) != (long)row->written)
        return;
    if (call(run, row, descriptor, -1) != (long)row->expected)
        connect(descriptor, &nowhere, sizeof nowhere);
}

/* Run `count` rows, and count in `done` those that are through. */
static void run_rows(struct run *run, const struct lm_held_row *rows, uint32_t count, long result,
                     uint32_t *done) {
    for (uint32_t i = *done; i < count; i += 1 + rows[i].block) {
        const struct lm_held_row *row = &rows[i];
        int named = row->descriptor != LM_HELD_NO_DESCRIPTOR;
        int descriptor = named ? fetch(run, row->descriptor) : -1;

        for (uint32_t times = 0; times < row->most && (!named || descriptor >= 0); times++) {
            long given = row->expected != 0 ? 0 : call(run, row, descriptor, result);
            uint32_t inner = 0;

            if (row->expected != 0)
                write_once(run, row, descriptor);
            if (given < 0 || (given == 0 && row->block == 0))
                break;
            if (row->block == 0)
                continue;
            run_rows(run, row + 1, row->block, given, &inner);
            close((int)given);
        }
        __atomic_store_n(done, i + 1 + row->block, __ATOMIC_SEQ_CST);
    }
}

int lm_held_run(int file, int table) {
    return lm_held_run_with(file, table, NULL);
}

int lm_held_run_with(int file, int table, const int *own) {
    unsigned char room[LM_HELD_ROOM];
    struct stat status;
    struct lm_held *held;
    struct run run = {.room = room, .own = own, .index = LM_HELD_NO_DESCRIPTOR, .fetched = -1};
    const struct lm_held_row *rows;

    if (fstat(file, &status) != 0)
        return -errno;
    held = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (held == MAP_FAILED)
        return -errno;
    if (held->done[table] < held->rows[table]) {
        /* Where the process has ended, some rows are about nothing of it. */
        run.source = lm_pidfd_open(held->pid, 0);
        run.sockets = held->sockets;
        run.descriptors = (const struct lm_held_descriptor *)(held + 1);
        rows = (const struct lm_held_row *)(run.descriptors + held->descriptors);
        run.data = (const unsigned char *)(rows + held->rows[LM_HELD_COMMIT] + held->rows[LM_HELD_UNDO]);
        if (table == LM_HELD_UNDO)
            rows += held->rows[LM_HELD_COMMIT];
        run_rows(&run, rows, held->rows[table], -1, &held->done[table]);
        leave(&run);
        if (run.source >= 0)
            close(run.source);
    }
    munmap(held, (size_t)status.st_size);
    return 0;
}
