/*
 * The floor: what the kernel and the machine allow, with nothing of ours in between.
 *
 * Four processes as in a real move: a source that holds still, a bare server (process_vm_readv, send), a bare
 * pager (poll, recv, UFFDIO_COPY) and a destination that touches its memory. One page per fault, both sides
 * sleep in poll and recv, nothing is compressed, nothing is checked, nothing is remembered. Prints one line
 * of JSON: the median and 99th percentile of a fault in microseconds as the destination feels it, and the
 * rate of a bulk pull with 1 MiB requests of which eight are under way; first each alone, then both at once
 * (busy_...), which shows what two processors leave for one beside the other.
 *
 *     floor [--pages N] [--faults N] [--address IP] [--source-netns PATH]
 *
 * With --source-netns the server runs in that network namespace, bound to IP.
 */
#define _GNU_SOURCE
#include "stream.h"
#include "workload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, UNDER_WAY = 8, LEAST_NS = 5000, BUSY_FAULTS = 1 << 18 };

struct setup {
    uint64_t pages, faults, third; /* third: the pages of one of three parts, whole chunks */
    const char *address, *netns;
    char *memory;
    int fault, bulk;
};

struct request {
    uint64_t address, length;
};

static char *map_pages(uint64_t pages) {
    char *memory =
        mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    return memory;
}

/* Memory that the host of a virtual machine has given already, for a pull; given back just before it. */
static char *hold_memory(size_t size) {
    char *held = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (held == MAP_FAILED || madvise(held, size, MADV_DONTFORK))
        fail("mmap");
    madvise(held, size, MADV_HUGEPAGE);
    for (size_t i = 0; i < size; i += PAGE)
        held[i] = 1;
    return held;
}

static pid_t start_source(const struct setup *setup) {
    int ready[2];
    char byte;
    if (pipe(ready))
        fail("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint64_t i = 0; i < setup->pages * PAGE; i += 8)
            *(uint64_t *)(setup->memory + i) = i * 0x9e3779b97f4a7c15u;
        if (write(ready[1], "", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    if (read(ready[0], &byte, 1) != 1)
        fail("source");
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void serve(pid_t source, int fd) {
    char *buffer = aligned_alloc(PAGE, CHUNK);
    for (;;) {
        struct request request;
        read_all(fd, &request, sizeof request);
        struct iovec local = {buffer, request.length}, remote = {(void *)request.address, request.length};
        if (process_vm_readv(source, &local, 1, &remote, 1, 0) != (ssize_t)request.length)
            fail("process_vm_readv");
        write_all(fd, buffer, request.length);
    }
}

/* The server's process, which listens and accepts two connections, one served by each of two processes. */
static pid_t start_server(struct setup *setup, pid_t source) {
    int port_pipe[2], one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    inet_pton(AF_INET, setup->address, &address.sin_addr);
    if (pipe(port_pipe))
        fail("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (setup->netns && setns(open(setup->netns, O_RDONLY | O_CLOEXEC), CLONE_NEWNET))
            fail("setns");
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 2) ||
            getsockname(listener, (struct sockaddr *)&address, &length) ||
            write(port_pipe[1], &address, sizeof address) != sizeof address)
            fail("listen");
        int first = accept(listener, NULL, NULL), second = accept(listener, NULL, NULL);
        setsockopt(first, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(second, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            serve(source, second);
        }
        serve(source, first);
    }
    if (read(port_pipe[0], &address, sizeof address) != sizeof address)
        fail("server");
    int *ends[] = {&setup->fault, &setup->bulk};
    for (int i = 0; i < 2; i++) {
        *ends[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(*ends[i], (struct sockaddr *)&address, sizeof address))
            fail("connect");
        setsockopt(*ends[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    return pid;
}

static int compare(const void *one, const void *other) {
    const uint64_t *a = one, *b = other;
    return *a < *b ? -1 : *a > *b;
}

/* What the processes share. */
struct results {
    volatile uint64_t stop;
    uint64_t busy_count;
    double busy_rate;
    uint64_t times[]; /* of the faults alone, then of those beside the bulk pull */
};

/* Touch pages of the first third at random. */
static uint64_t touch_some(const struct setup *setup, struct results *results, uint64_t *times, uint64_t most,
                           uint64_t *seed) {
    uint64_t count = 0;
    while (count < most && !results->stop) {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        uint64_t begin = now_ns();
        (void)*(volatile char *)(setup->memory + *seed % setup->third * PAGE);
        uint64_t took = now_ns() - begin;
        /* A page touched before is no fault: leave out what takes less than one can take. */
        if (took >= LEAST_NS)
            times[count++] = took;
    }
    return count;
}

/* The destination: makes a userfaultfd for its memory, says so, waits for a word and touches pages; twice. */
static void touch(const struct setup *setup, int say, int hear, struct results *results) {
    char byte;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uint64_t)setup->memory, setup->pages * PAGE},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
        fail("userfaultfd");
    if (write(say, &fd, sizeof fd) != sizeof fd || read(hear, &byte, 1) != 1)
        fail("destination");
    uint64_t seed = 42;
    touch_some(setup, results, results->times, setup->faults, &seed);
    if (write(say, "", 1) != 1 || read(hear, &byte, 1) != 1)
        fail("destination");
    results->busy_count = touch_some(setup, results, results->times + setup->faults, BUSY_FAULTS, &seed);
    if (write(say, "", 1) != 1)
        fail("destination");
    for (;;)
        pause();
}

static void answer_faults(const struct setup *setup, int userfault, int done) {
    char *page = aligned_alloc(PAGE, PAGE), byte;
    struct pollfd events[2] = {{.fd = userfault, .events = POLLIN}, {.fd = done, .events = POLLIN}};
    for (;;) {
        struct uffd_msg message;
        poll(events, 2, -1);
        if (events[1].revents && read(done, &byte, 1) == 1)
            break;
        if (read(userfault, &message, sizeof message) != sizeof message)
            continue;
        struct request request = {message.arg.pagefault.address & ~(uint64_t)(PAGE - 1), PAGE};
        write_all(setup->fault, &request, sizeof request);
        read_all(setup->fault, page, PAGE);
        struct uffdio_copy copy = {.dst = request.address, .src = (uint64_t)page, .len = PAGE};
        if (ioctl(userfault, UFFDIO_COPY, &copy) && errno != EEXIST)
            fail("UFFDIO_COPY");
    }
    free(page);
}

/* A third of the memory in one go; bytes per second. */
static double pull(const struct setup *setup, int userfault, uint64_t third) {
    uint64_t first = (uint64_t)setup->memory + third * setup->third * PAGE;
    uint64_t chunks = setup->third * PAGE / CHUNK, asked = 0;
    char *buffer = aligned_alloc(PAGE, CHUNK);
    uint64_t begin = now_ns();
    for (uint64_t i = 0; i < chunks; i++) {
        for (; asked < chunks && asked < i + UNDER_WAY; asked++) {
            struct request request = {first + asked * CHUNK, CHUNK};
            write_all(setup->bulk, &request, sizeof request);
        }
        read_all(setup->bulk, buffer, CHUNK);
        struct uffdio_copy copy = {.dst = first + i * CHUNK, .src = (uint64_t)buffer, .len = CHUNK};
        if (ioctl(userfault, UFFDIO_COPY, &copy))
            fail("UFFDIO_COPY");
    }
    double seconds = (double)(now_ns() - begin) / 1e9;
    free(buffer);
    return (double)(chunks * CHUNK) / seconds;
}

static void print_faults(const char *prefix, uint64_t *times, uint64_t count) {
    qsort(times, count, sizeof *times, compare);
    printf("\"%sfault_p50_us\": %.1f, \"%sfault_p99_us\": %.1f, \"%sfaults\": %llu, ", prefix,
           count ? (double)times[count / 2] / 1000 : 0.0, prefix,
           count ? (double)times[count * 99 / 100] / 1000 : 0.0, prefix, (unsigned long long)count);
}

int main(int argc, char **argv) {
    struct setup setup = {.pages = 262144, .faults = 4000, .address = "127.0.0.1"};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--pages"))
            setup.pages = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--faults"))
            setup.faults = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "--address"))
            setup.address = argv[i + 1];
        else if (!strcmp(argv[i], "--source-netns"))
            setup.netns = argv[i + 1];
        else
            return 2;
    }
    setup.third = setup.pages / 3 / (CHUNK / PAGE) * (CHUNK / PAGE);
    if (!setup.third || !setup.faults || setup.faults > setup.third / 4) {
        fprintf(stderr, "floor: too few pages for %llu faults\n", (unsigned long long)setup.faults);
        return 2;
    }
    setup.memory = map_pages(setup.pages);
    size_t size = sizeof(struct results) + (setup.faults + BUSY_FAULTS) * sizeof(uint64_t);
    struct results *results = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t source = start_source(&setup), server = start_server(&setup, source);
    char *held = hold_memory(setup.third * PAGE), *held_busy = hold_memory(setup.third * PAGE);
    int say[2], hear[2], number;
    if (results == MAP_FAILED || pipe(say) || pipe(hear))
        fail("pipe");
    pid_t destination = fork();
    if (destination == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        touch(&setup, say[1], hear[0], results);
    }
    if (read(say[0], &number, sizeof number) != sizeof number)
        fail("destination");
    int pidfd = (int)syscall(SYS_pidfd_open, destination, 0);
    int userfault = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
    if (userfault < 0 || write(hear[1], "", 1) != 1)
        fail("pidfd_getfd");
    answer_faults(&setup, userfault, say[0]);
    munmap(held, setup.third * PAGE);
    double rate = pull(&setup, userfault, 1);
    munmap(held_busy, setup.third * PAGE);
    pid_t puller = fork();
    if (puller == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        results->busy_rate = pull(&setup, userfault, 2);
        results->stop = 1;
        _exit(0);
    }
    if (write(hear[1], "", 1) != 1)
        fail("destination");
    answer_faults(&setup, userfault, say[0]);
    waitpid(puller, NULL, 0);
    printf("{");
    print_faults("", results->times, setup.faults);
    print_faults("busy_", results->times + setup.faults, results->busy_count);
    printf("\"bulk_bytes_per_second\": %.0f, \"busy_bulk_bytes_per_second\": %.0f}\n", rate,
           results->busy_rate);
    kill(destination, SIGKILL);
    kill(server, SIGKILL);
    kill(source, SIGKILL);
    while (wait(NULL) > 0)
        ;
    return 0;
}
