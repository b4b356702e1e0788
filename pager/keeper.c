#define _GNU_SOURCE
#include "pager/keeper.h"

#include "kernel/kernel.h"
#include "kernel/memory/own_memory.h"
#include "kernel/own_name.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

bool lm_keeper_is_alive(int userfaultfd) {
    /* A copy that can never succeed, from nowhere to the lowest page anybody may map: without the memory it
     * says ESRCH. */
    struct uffdio_copy copy = {.dst = 0x10000, .src = 0, .len = 4096};
    return ioctl(userfaultfd, UFFDIO_COPY, &copy) == 0 || errno != ESRCH;
}

/* What the kernel gives (getdents64(2)). */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

enum { PAUSE_MS = 200, MOST_WATCHED = 4096 };

/* What the keeper has when the pager is dead. */
struct hold {
    struct pollfd userfaults[MOST_WATCHED];
    int count; /* of those whose process lives */
    int ledger;
    unsigned char *base;
};

/* The keeper is a copy of a process with threads: it may call nothing that could wait for a lock of theirs,
 * so no opendir. It goes over all descriptors, closes those that are no userfaultfd and not the ledger if
 * `close_others`, and notes the userfaultfds that still have a process. When /proc cannot be read, nothing changes. */
static void look(struct hold *hold, bool close_others) {
    int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return;
    hold->count = 0;
    char buffer[4096];
    long size;
    while ((size = syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < size;) {
            struct entry entry;
            memcpy(&entry, buffer + at, sizeof entry);
            const char *name = buffer + at + offsetof(struct entry, name);
            char target[64];
            int fd = 0;
            for (const char *digit = name; *digit >= '0' && *digit <= '9'; digit++)
                fd = fd * 10 + (*digit - '0');
            ssize_t length = name[0] == '.' ? 0 : readlinkat(directory, name, target, sizeof target);
            at += entry.length;
            if (length <= 0 || fd == directory || fd == hold->ledger)
                continue;
            const char wanted[] = "anon_inode:[userfaultfd]";
            if (length == sizeof wanted - 1 && !memcmp(target, wanted, sizeof wanted - 1)) {
                if (lm_keeper_is_alive(fd) && hold->count < MOST_WATCHED)
                    hold->userfaults[hold->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
            } else if (close_others) {
                close(fd);
            }
        }
    }
    close(directory);
}

static uint32_t load(const uint32_t *place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

/* The ledger that this one was made of, if the pager has died before it could say that this one counts instead. */
static void settle_predecessor(struct lm_ledger_head *head) {
    const uint32_t yes = 1;
    if (head->predecessor < 0)
        return;
    /* It has the userfaultfds still, and a keeper of its own. */
    if (!load(&head->active))
        _exit(0);
    if (pwrite(head->predecessor, &yes, sizeof yes, offsetof(struct lm_ledger_head, abandoned)) < 0)
        _exit(1);
}

/* Read what the processes do to their mappings, so that they need not wait; whoever comes after the pager takes it from
 * the ring. Threads that wait for a page go on waiting. Returns whether there is another process now. */
static bool read_events(struct hold *hold, const struct lm_ledger *ledger, uint64_t *next) {
    bool forked = false;
    for (int i = 0; i < hold->count; i++) {
        if (!(hold->userfaults[i].revents & POLLIN) ||
            *next - lm_ledger_committed(ledger)->applied >= LM_LEDGER_SLOTS)
            continue;
        if (lm_ledger_read(hold->base, *next, hold->userfaults[i].fd) <= 0)
            continue;
        const struct lm_ledger_slot *slot = lm_ledger_slot(hold->base, *next);
        for (int j = 0; slot && j < LM_MESSAGES; j++)
            forked |= slot->messages[j].event == UFFD_EVENT_FORK;
        ++*next;
    }
    return forked;
}

/* The pager is dead. */
static void hold_on(unsigned char *base, int fd) {
    struct hold hold = {.ledger = fd, .base = base};
    const struct lm_ledger ledger = {.fd = fd, .base = base};
    struct lm_ledger_head *head = lm_ledger_head(&ledger);
    settle_predecessor(head);
    look(&hold, true);
    /* The lock is for an open file, and the pager's may live on in whoever it has forked. */
    char path[] = "/proc/self/fd/##########";
    char *digit = path + sizeof path - 1;
    int number = fd;
    do
        *--digit = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    memmove(path + 14, digit, (size_t)(path + sizeof path - digit));
    int own = open(path, O_RDWR | O_CLOEXEC);
    uint64_t next = lm_ledger_committed(&ledger)->applied;
    while (lm_ledger_slot(base, next))
        next++;
    hold.ledger = own;
    /* The note stays for as long as the process, whose source has not heard yet. */
    while (load(&head->complete) && !load(&head->abandoned) && (kill(head->pid, 0) == 0 || errno != ESRCH))
        poll(NULL, 0, PAUSE_MS);
    while (hold.count && !load(&head->abandoned)) {
        bool forked = false;
        if (poll(hold.userfaults, (nfds_t)hold.count, PAUSE_MS) > 0) {
            if (own < 0 || flock(own, LOCK_EX | LOCK_NB))
                poll(NULL, 0, PAUSE_MS);
            else if (!load(&head->abandoned))
                forked = read_events(&hold, &ledger, &next);
            if (own >= 0)
                flock(own, LOCK_UN);
            if (!forked)
                poll(NULL, 0, 1);
        }
        look(&hold, false);
    }
}

/* The keeper gives up the pager's memory: while the two share it, the pager pays for every first write. Then it says
 * that all is ready. */
static void let_go_of_memory(int ready) {
    char here, byte = 0;
    const void *const kept[] = {&here, __builtin_thread_pointer()};
    lm_own_memory_drop(kept, 2);
    if (write(ready, &byte, 1) < 0)
        _exit(1);
    close(ready);
}

__attribute__((noreturn)) static void keep(struct lm_keeper keeper, struct lm_ledger ledger, int ready) {
    lm_own_name("lm-keeper", "holds missing memory, never kill it");
    setsid();
    let_go_of_memory(ready);
    struct pollfd events[2] = {{.fd = keeper.finished, .events = POLLIN},
                               {.fd = keeper.pager, .events = POLLIN}};
    for (;;) {
        int ready = poll(events, 2, -1);
        if (ready > 0 && events[0].revents & POLLIN)
            _exit(0);
        if (ready > 0 && events[1].revents & POLLIN)
            break;
    }
    hold_on(ledger.base, ledger.fd);
    _exit(0);
}

/* The keeper's process; the other end of `ready` is read when it has done what it does first. */
static int start_process(struct lm_keeper *keeper, const struct lm_ledger *ledger, int ready) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* No exit signal: a thread that waits for its own children does not get this one. */
    long pid = syscall(SYS_clone, CLONE_FILES, 0, 0, 0, 0);
    int error = pid < 0 ? -errno : 0;
    if (pid == 0)
        keep(*keeper, *ledger, ready);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    keeper->pid = pid < 0 ? 0 : (int)pid;
    return error;
}

/* The end of the pipe that the keeper writes to is ours too, so its death does not end the pipe. */
static int wait_until_ready(struct lm_keeper *keeper, int ready) {
    struct pollfd event = {.fd = ready, .events = POLLIN};
    int count;
    while ((count = poll(&event, 1, 100)) <= 0) {
        if (count < 0 && errno != EINTR)
            return -errno;
        if (waitpid(keeper->pid, NULL, __WALL | WNOHANG) == keeper->pid) {
            keeper->pid = 0;
            return -ECHILD;
        }
    }
    return 0;
}

int lm_keeper_start(struct lm_keeper *keeper, const struct lm_ledger *ledger) {
    int ready[2] = {-1, -1};
    keeper->finished = eventfd(0, EFD_CLOEXEC);
    keeper->pager = (int)syscall(SYS_pidfd_open, getpid(), 0);
    int error = keeper->finished < 0 || keeper->pager < 0 || pipe2(ready, O_CLOEXEC) ? -errno : 0;
    if (!error)
        error = start_process(keeper, ledger, ready[1]);
    /* The keeper closes the pipe's end in the table that both share. */
    if (!error)
        error = wait_until_ready(keeper, ready[0]);
    if (!error && (keeper->itself = (int)syscall(SYS_pidfd_open, keeper->pid, 0)) < 0)
        error = -errno;
    if (ready[0] >= 0)
        close(ready[0]);
    if (!error) {
        lm_own_memory_populate();
    } else {
        if (!keeper->pid && ready[1] >= 0)
            close(ready[1]);
        lm_keeper_finish(keeper);
    }
    return error;
}

int lm_keeper_replace(struct lm_keeper *keeper, const struct lm_ledger *ledger) {
    if (keeper->pid)
        waitpid(keeper->pid, NULL, __WALL | WNOHANG);
    keeper->pid = 0;
    lm_keeper_finish(keeper);
    return lm_keeper_start(keeper, ledger);
}

void lm_keeper_finish(struct lm_keeper *keeper) {
    uint64_t one = 1;
    if (keeper->pid && write(keeper->finished, &one, sizeof one) == sizeof one)
        while (waitpid(keeper->pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
    if (keeper->finished >= 0)
        close(keeper->finished);
    if (keeper->pager >= 0)
        close(keeper->pager);
    if (keeper->itself >= 0)
        close(keeper->itself);
    *keeper = LM_NO_KEEPER;
}

void lm_keeper_leave(struct lm_keeper *keeper) {
    /* The descriptors stay: the table is the keeper's too. */
    *keeper = LM_NO_KEEPER;
}
