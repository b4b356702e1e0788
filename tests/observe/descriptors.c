/* Descriptors: files of every kind, pipes, and what the kernel makes of anonymous inodes. */
#include "observer.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>

#ifndef F_GET_RW_HINT
#define F_GET_RW_HINT 1035
#define F_SET_RW_HINT 1036
#endif

/* Flags that have had their effect when the file was opened. */
#define AT_OPENING (O_NOFOLLOW | O_TMPFILE | O_DIRECTORY)

int draw_descriptor(struct draw *from) {
    return FIRST_DESCRIPTOR + (int)draw(from, DESCRIPTORS);
}

/* Is there another number for the open file of this one? */
static bool is_twice(int number) {
    for (int other = FIRST_DESCRIPTOR; other < FIRST_DESCRIPTOR + ALL_DESCRIPTORS; other++)
        if (other != number && syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, number, other) == 0)
            return true;
    return false;
}

/* An epoll set that has lost its only entry when the file of a number is gone; -1 if that cannot be told. */
static int watch_end(int number) {
    struct epoll_event none = {0};
    if (fcntl(number, F_GETFD) < 0 || is_twice(number))
        return -1;
    int watch = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(watch, EPOLL_CTL_ADD, number, &none) == 0)
        return watch;
    close(watch);
    return -1;
}

/* Waits for that: lm-serve holds a duplicate while it looks at a file, so that what has come of closing it (the end of a
 * pipe, the error of a socket) could be seen later than what was observed after the call. */
static void await_end(int watch) {
    const struct timespec pause = {0, 4000000};
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", watch);
    for (int tries = 0; watch >= 0 && tries < 1000; tries++) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = read(file, text, sizeof(text) - 1);
        close(file);
        text[length < 0 ? 0 : length] = 0;
        if (!strstr(text, "tfd:"))
            break;
        nanosleep(&pause, NULL);
    }
    if (watch >= 0)
        close(watch);
}

static int put(int made, int number, int flags) {
    int watch = watch_end(number), result = dup3(made, number, flags);
    await_end(watch);
    return result;
}

void put_descriptor(int made, int number) {
    if (made < 0 || made == number)
        return;
    put(made, number, fcntl(made, F_GETFD) & FD_CLOEXEC ? O_CLOEXEC : 0);
    close(made);
}

/* A pair of descriptors at an even number and the next one. */
static void put_pair(struct draw *from, const int pair[2], const char *what) {
    int number = draw_descriptor(from) & ~1;
    put_descriptor(pair[0], number);
    put_descriptor(pair[1], number + 1);
    did("%s = %d, %d", what, number, number + 1);
}

static int open_file(struct draw *from, char *path, size_t size) {
    static const int ways[] = {O_RDONLY, O_WRONLY, O_RDWR};
    static const int more[] = {0, O_APPEND, O_NONBLOCK, O_DSYNC, O_SYNC, O_NOATIME, O_CLOEXEC, O_NOFOLLOW};
    int flags = DRAW_OF(from, ways) | O_CREAT | DRAW_OF(from, more) | DRAW_OF(from, more);
    snprintf(path, size, "%s/file-%d", folder(), (int)draw(from, 5));
    return open(path, flags, 0640);
}

static void change_open(struct draw *from) {
    static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom",
                                          "/dev/random"};
    static const int ways[] = {O_RDONLY, O_RDWR, O_PATH, O_RDONLY | O_CLOEXEC};
    char path[512] = "";
    int made = -1, number = draw_descriptor(from);
    switch (draw(from, 7)) {
    case 0:
    case 1:
        made = open_file(from, path, sizeof(path));
        break;
    case 2:
        snprintf(path, sizeof(path), "%s", DRAW_OF(from, devices));
        made = open(path, DRAW_OF(from, ways));
        break;
    case 3:
        snprintf(path, sizeof(path), "%s/two", folder());
        made = open(path, O_DIRECTORY | (draw(from, 2) ? O_PATH : O_RDONLY));
        break;
    case 4:
        made = open_file(from, path, sizeof(path));
        unlink(path);
        break;
    case 5:
        snprintf(path, sizeof(path), "%s", folder());
        made = open(path, O_TMPFILE | O_RDWR, draw(from, 01000));
        break;
    case 6:
        snprintf(path, sizeof(path), "%s/fifo-%d", folder(), (int)draw(from, 3));
        mkfifo(path, 0600);
        made = open(path, O_RDWR | O_NONBLOCK);
        break;
    }
    did("open(%s) = %d", path, made < 0 ? -errno : number);
    put_descriptor(made, number);
}

static void change_memfd(struct draw *from) {
    static const int seals[] = {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE};
    static const unsigned flags[] = {
        0, MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_ALLOW_SEALING, 0x8 /* MFD_NOEXEC_SEAL */, 0x10 /* MFD_EXEC */};
    int number = draw_descriptor(from), made = memfd_create("sealed", DRAW_OF(from, flags)), result = 0;
    if (made < 0)
        return;
    result = ftruncate(made, (off_t)draw(from, 50000));
    if (pwrite(made, "content", 7, (off_t)draw(from, 40000)) != 7 ||
        lseek(made, (off_t)draw(from, 9999), SEEK_SET) < 0)
        _exit(4);
    for (uint64_t i = draw(from, 3); i; i--)
        result |= fcntl(made, F_ADD_SEALS, DRAW_OF(from, seals));
    if (draw(from, 3) == 0)
        result |= fchmod(made, (mode_t)draw(from, 0777));
    if (draw(from, 6) == 0)
        result |= fchown(made, 12, 34);
    did("memfd_create = %d, %d", number, result);
    put_descriptor(made, number);
}

static void change_anonymous(struct draw *from) {
    int number = draw_descriptor(from), made = -1;
    sigset_t some;
    const char *what = "";
    char path[512];
    switch (draw(from, 4)) {
    case 0:
        made = eventfd((unsigned)draw(from, 100), (draw(from, 2) ? EFD_SEMAPHORE : 0) |
                                                      (draw(from, 2) ? EFD_NONBLOCK : 0) |
                                                      (draw(from, 2) ? EFD_CLOEXEC : 0));
        what = "eventfd";
        break;
    case 1:
        sigemptyset(&some);
        for (uint64_t i = draw(from, 5); i; i--)
            sigaddset(&some, 1 + (int)draw(from, 64));
        made = signalfd(-1, &some, draw(from, 2) ? SFD_NONBLOCK : 0);
        what = "signalfd";
        break;
    case 2:
        made = epoll_create1(draw(from, 2) ? EPOLL_CLOEXEC : 0);
        what = "epoll_create1";
        break;
    case 3:
        made = inotify_init1(IN_NONBLOCK | (draw(from, 2) ? IN_CLOEXEC : 0));
        snprintf(path, sizeof(path), "%s/three", folder());
        if (draw(from, 2))
            inotify_add_watch(made, path, IN_CREATE | IN_DELETE);
        what = "inotify_init1";
        break;
    }
    did("%s = %d", what, number);
    put_descriptor(made, number);
}

static void change_pipe(struct draw *from) {
    static const int flags[] = {0, O_NONBLOCK, O_CLOEXEC, O_DIRECT};
    int pair[2];
    char data[6000];
    if (pipe2(pair, DRAW_OF(from, flags)) != 0)
        return;
    int size = draw(from, 2) ? fcntl(pair[0], F_SETPIPE_SZ, 4096 << draw(from, 5)) : 0;
    memset(data, 'a' + (int)draw(from, 26), sizeof(data));
    fcntl(pair[1], F_SETFL, fcntl(pair[1], F_GETFL) | O_NONBLOCK);
    for (uint64_t i = draw(from, 4); i; i--)
        if (write(pair[1], data, 1 + draw(from, sizeof(data) - 1)) < 0)
            break;
    did("pipe of %d", size);
    put_pair(from, pair, "pipe2");
}

/* A number that is open; -1 if there is none near the one that is drawn. */
static int draw_open(struct draw *from) {
    int first = (int)draw(from, DESCRIPTORS);
    for (int i = 0; i < DESCRIPTORS; i++) {
        int number = FIRST_DESCRIPTOR + (first + i) % DESCRIPTORS;
        if (fcntl(number, F_GETFD) >= 0)
            return number;
    }
    return -1;
}

static void change_flags(struct draw *from) {
    static const int flags[] = {O_APPEND, O_NONBLOCK, O_NOATIME, O_ASYNC};
    static const int signals[] = {0, SIGURG, SIGWINCH};
    int number = draw_open(from), result = 0, kind = (int)draw(from, 9);
    uint64_t hint = draw(from, 6);
    struct f_owner_ex owner = {(int)draw(from, 3), getpid()};
    if (number < 0)
        return;
    switch (kind) {
    case 0:
        result = fcntl(number, F_SETFD, draw(from, 2) ? FD_CLOEXEC : 0);
        break;
    case 1:
        result = fcntl(number, F_SETFL, fcntl(number, F_GETFL) ^ DRAW_OF(from, flags));
        break;
    case 2:
        if (owner.type == F_OWNER_PGRP)
            owner.pid = getpgrp();
        result = fcntl(number, F_SETOWN_EX, &owner);
        break;
    case 3:
        result = fcntl(number, F_SETSIG, DRAW_OF(from, signals));
        break;
    case 4:
        result = fcntl(number, F_SET_RW_HINT, &hint);
        break;
    case 5:
        result = (int)lseek(number, (off_t)draw(from, 3000), SEEK_SET);
        break;
    case 6: {
        int other = draw_descriptor(from);
        result = put(number, other, draw(from, 2) ? O_CLOEXEC : 0);
        did("dup3(%d, %d)", number, other);
        break;
    }
    case 7: {
        int watch = watch_end(number);
        result = close(number);
        await_end(watch);
        break;
    }
    case 8: {
        struct stat status;
        if (fstat(number, &status) == 0 && S_ISREG(status.st_mode))
            result = (int)pwrite(number, "some more", 9, (off_t)draw(from, 2000));
        break;
    }
    }
    did("change %d of descriptor %d = %d", kind, number, result);
}

static void change_locks(struct draw *from) {
    int number = draw_open(from), kind = (int)draw(from, 3), result = 0;
    struct stat status;
    struct flock wanted = {.l_type = draw(from, 2) ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (number < 0 || !may_be_refused() || fstat(number, &status) != 0 || !S_ISREG(status.st_mode))
        return;
    wanted.l_start = (off_t)draw(from, 100);
    wanted.l_len = (off_t)draw(from, 100);
    if (kind == 0)
        result = flock(number, (draw(from, 2) ? LOCK_SH : LOCK_EX) | LOCK_NB);
    else
        result = fcntl(number, kind == 1 ? F_SETLK : F_OFD_SETLK, &wanted);
    did("lock %d of descriptor %d = %d", kind, number, result);
}

/* struct epoll_params of linux/eventpoll.h */
struct polling {
    uint32_t usecs;
    uint16_t budget;
    uint8_t prefer, unused;
};

static void change_epoll(struct draw *from) {
    static const uint32_t events[] = {EPOLLIN,    EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT,
                                      EPOLLRDHUP, 0};
    int watched = draw_open(from);
    char path[64], kind[64] = "";
    for (int number = FIRST_DESCRIPTOR; watched >= 0 && number < FIRST_DESCRIPTOR + DESCRIPTORS; number++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", number);
        if (readlink(path, kind, sizeof(kind) - 1) < 0 || strncmp(kind, "anon_inode:[eventpoll]", 22) != 0)
            continue;
        struct polling polling = {(uint32_t)draw(from, 100), 8, (uint8_t)draw(from, 2), 0};
        if (draw(from, 4) == 0)
            did("ioctl(%d, EPIOCSPARAMS, %u) = %d", number, polling.usecs,
                ioctl(number, _IOW(0x8a, 1, struct polling), &polling));
        struct epoll_event wanted = {.events = DRAW_OF(from, events), .data.u64 = draw(from, UINT64_MAX)};
        int result = epoll_ctl(number, EPOLL_CTL_ADD, watched, &wanted);
        if (result < 0 && errno == EEXIST)
            result = epoll_ctl(number, draw(from, 3) ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, watched, &wanted);
        did("epoll_ctl(%d, %d, %#x) = %d", number, watched, wanted.events, result);
        return;
    }
}

/* --- what is seen of them --- */

/* Without the lines that name the object by a number of this host, and without what goes on by itself. */
static void observe_information(struct report *report, int number) {
    static const char *const words[] = {"pos:",     "eventfd-count:", "eventfd-semaphore:",
                                        "sigmask:", "inotify ",       "scm_fds:",
                                        "Pid:",     "NSpid:",         "lock:",
                                        NULL};
    char path[64], key[64];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", number);
    snprintf(key, sizeof(key), "descriptor %d information", number);
    say_lines(report, key, path, words);
}

/* A descriptor in an epoll set, its events and data: "tfd:       20 events:       19 data: 7  pos:0 ino:61 sdev:6". The
 * order in a set is that of addresses in the kernel. */
static void observe_epoll(struct report *report, int number) {
    char path[64], key[96], line[256];
    struct stat status;
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", number);
    struct polling polling = {0};
    snprintf(key, sizeof(key), "descriptor %d polls", number);
    if (ioctl(number, _IOR(0x8a, 2, struct polling), &polling) == 0)
        say_bytes(report, key, &polling, sizeof(polling));
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        int target;
        unsigned events;
        unsigned long long data;
        unsigned long inode;
        /* A number that stands for something else by now may be there because lm-serve holds a duplicate. */
        if (sscanf(line, "tfd: %d events: %x data: %llx pos:%*d ino:%lx", &target, &events, &data, &inode) !=
                4 ||
            fstat(target, &status) != 0 || status.st_ino != inode)
            continue;
        snprintf(key, sizeof(key), "descriptor %d watches %d data %llx", number, target, data);
        say(report, key, "%x", events);
    }
    if (file)
        fclose(file);
}

static void observe_pipe(struct report *report, int number) {
    char key[64];
    int waiting = -1;
    ioctl(number, FIONREAD, &waiting);
    /* What waits in a pipe that nobody can read from any more is not taken along. */
    struct pollfd wanted = {number, 0, 0};
    if (poll(&wanted, 1, 0) == 1 && (wanted.revents & POLLERR || is_being_moved()))
        waiting = 0;
    snprintf(key, sizeof(key), "descriptor %d pipe", number);
    say(report, key, "size %d waiting %d", fcntl(number, F_GETPIPE_SZ), waiting);
}

static void observe_file(struct report *report, int number, const struct stat *status) {
    char key[64], content[64];
    snprintf(key, sizeof(key), "descriptor %d file", number);
    say(report, key, "mode %o owner %u %u size %lld seals %d links %lu", status->st_mode, status->st_uid,
        status->st_gid, (long long)status->st_size, fcntl(number, F_GET_SEALS),
        (unsigned long)status->st_nlink);
    ssize_t length = S_ISREG(status->st_mode) ? pread(number, content, sizeof(content), 0) : -1;
    snprintf(key, sizeof(key), "descriptor %d content", number);
    if (length > 0)
        say_bytes(report, key, content, (size_t)length);
}

static void observe_descriptor(struct report *report, int number) {
    char key[64], path[64], link[300] = "";
    struct f_owner_ex owner = {0};
    struct stat status = {0};
    uint64_t hint = 0;
    int signal = -1, has_owner = fcntl(number, F_GETOWN_EX, &owner);
    signal = fcntl(number, F_GETSIG);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", number);
    if (readlink(path, link, sizeof(link) - 1) < 0)
        return;
    fstat(number, &status);
    /* It belongs to the inode: all anonymous ones of the host are one, and without a name the inode is another one. */
    if (S_ISREG(status.st_mode) && status.st_nlink)
        fcntl(number, F_GET_RW_HINT, &hint);
    snprintf(key, sizeof(key), "descriptor %d", number);
    /* An object without a name has a number of this host in its link. */
    int length = strncmp(link, "pipe:", 5) == 0 || strncmp(link, "socket:", 7) == 0 ? (int)strcspn(link, ":")
                 : strstr(link, "(deleted)") && link[1] != 'm'                      ? 0
                                                                                    : (int)strlen(link);
    say(report, key, "%.*s fd %d flags %#x owner %d %d %d signal %d hint %llu lease %d", length, link,
        fcntl(number, F_GETFD), (unsigned)(fcntl(number, F_GETFL) & ~AT_OPENING), has_owner, owner.type,
        owner.pid, signal, (unsigned long long)hint, S_ISREG(status.st_mode) ? fcntl(number, F_GETLEASE) : 0);
    observe_information(report, number);
    if (S_ISFIFO(status.st_mode))
        observe_pipe(report, number);
    else if (!S_ISSOCK(status.st_mode) && link[0] == '/')
        observe_file(report, number, &status);
    if (strcmp(link, "anon_inode:[eventpoll]") == 0)
        observe_epoll(report, number);
    snprintf(key, sizeof(key), "descriptor %d ready", number);
    struct pollfd wanted = {number, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    /* Small pieces in a pipe may have been joined: then it takes more. */
    bool unread = S_ISFIFO(status.st_mode) && poll(&wanted, 1, 0) == 1 && wanted.revents & POLLERR;
    /* What the process has closed is gone for its other end a little later, if lm-serve reads it just then. */
    if (!unread && !is_being_moved() && poll(&wanted, 1, 0) >= 0 && strncmp(link, "anon_inode", 10) != 0)
        say(report, key, "%#x", (unsigned)(wanted.revents & ~(S_ISFIFO(status.st_mode) ? POLLOUT : 0)));
}

/* Which of the descriptors stand for one open file: each by the lowest such number. */
static void observe_duplicates(struct report *report) {
    int open[2 * DESCRIPTORS], count = 0;
    for (int number = FIRST_DESCRIPTOR; number < FIRST_DESCRIPTOR + 2 * DESCRIPTORS; number++) {
        char key[64];
        if (fcntl(number, F_GETFD) < 0)
            continue;
        for (int i = 0; i < count; i++) {
            if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, open[i], number) != 0)
                continue;
            snprintf(key, sizeof(key), "descriptor %d is", number);
            say(report, key, "%d", open[i]);
            break;
        }
        open[count++] = number;
    }
}

static void observe_descriptors(struct report *report) {
    for (int number = 0; number < FIRST_DESCRIPTOR + 2 * DESCRIPTORS; number++) {
        char key[64];
        snprintf(key, sizeof(key), "descriptor %d", number);
        if (fcntl(number, F_GETFD) < 0)
            say(report, key, "closed");
        else if (number >= FIRST_DESCRIPTOR)
            observe_descriptor(report, number);
    }
    observe_duplicates(report);
}

static const struct aspect opened = {"open", false, change_open, observe_descriptors};
static const struct aspect memory_file = {"memfd", false, change_memfd, NULL};
static const struct aspect anonymous = {"anonymous", false, change_anonymous, NULL};
static const struct aspect pipes = {"pipe", false, change_pipe, NULL};
static const struct aspect flags = {"fcntl", false, change_flags, NULL};
static const struct aspect locks = {"locks", false, change_locks, NULL};
static const struct aspect epoll = {"epoll", false, change_epoll, NULL};

const struct aspect *const descriptor_aspects[] = {&opened, &memory_file, &anonymous, &pipes, &flags,
                                                   &flags,  &locks,       &epoll,     NULL};
