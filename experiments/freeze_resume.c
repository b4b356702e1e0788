/*
 * The floor of a downtime: an empty process is stopped, its registers and the top of its stack go over TCP,
 * and an equal process, which was staged before, runs on with them. The two messages of any handover that
 * never lets two copies run are there (READY, COMMIT); nothing is described, compared, restored or kept.
 * Prints one line of JSON: "gaps_us", for each round the longest time between two heartbeats, as the process
 * itself felt it.
 *
 *     freeze_resume [--rounds N] [--address IP] [--source-netns PATH]
 *
 * With --source-netns the source's side runs in that network namespace, bound to IP.
 */
#define _GNU_SOURCE
#include "stream.h"
#include "workload.h"

#include <arpa/inet.h>
#include <elf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

enum { STACK = 2048, VECTORS = 16384, RED_ZONE = 128, SETTLE_NS = 2000000, ROUNDS = 1000, PATIENCE = 1000 };

struct state {
    struct user_regs_struct registers;
    uint64_t stack_pointer, vectors_size;
    char stack[STACK];
    char vectors[VECTORS]; /* sent as far as it is filled: a processor with AMX fills 11 KiB */
};

/* Mapped shared by both copies, so that they are one process as far as it can tell. */
struct shared {
    volatile uint64_t last, longest;
};

static void settle(void) {
    struct timespec time = {0, SETTLE_NS};
    nanosleep(&time, NULL);
}

/* Both sides sleep until there is something to do, and are then not kept waiting by the process that they
 * move. */
static void real_time(void) {
    sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &(struct sched_param){.sched_priority = 1});
}

/* Both copies begin here, at the same depth of the stack; the one at the destination is held. */
static pid_t spawn(struct shared *shared, int held) {
    pid_t pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (held) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
    }
    shared->last = now_ns();
    for (;;) {
        uint64_t now = now_ns(), gap = now - shared->last;
        shared->last = now;
        if (gap > shared->longest)
            shared->longest = gap;
    }
}

/* Where the copied part of the stack begins: what is below the stack pointer is in use too (the red zone). */
static void *stack_of(const struct state *state) {
    return (void *)(state->stack_pointer - RED_ZONE);
}

static void take_state(pid_t pid, struct state *state) {
    struct iovec vectors = {state->vectors, VECTORS}, local = {state->stack, STACK}, remote;
    struct __ptrace_syscall_info stopped;
    if (ptrace(PTRACE_GETREGS, pid, NULL, &state->registers) ||
        ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof stopped, &stopped) < 0 ||
        ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &vectors))
        fail("PTRACE_GETREGS");
    state->vectors_size = vectors.iov_len;
    state->stack_pointer = stopped.stack_pointer;
    remote = (struct iovec){stack_of(state), STACK};
    if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != STACK)
        fail("process_vm_readv");
}

static void put_state(pid_t pid, struct state *state) {
    struct iovec vectors = {state->vectors, state->vectors_size}, local = {state->stack, STACK};
    struct iovec remote = {stack_of(state), STACK};
    if (process_vm_writev(pid, &local, 1, &remote, 1, 0) != STACK)
        fail("process_vm_writev");
    if (ptrace(PTRACE_SETREGS, pid, NULL, &state->registers) ||
        ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, &vectors))
        fail("PTRACE_SETREGS");
}

/* The source's side: for each process that is named to it, stop it and hand it over. */
static void serve(int listener, int orders) {
    static struct state state;
    char byte;
    pid_t pid;
    int one = 1, peer = accept(listener, NULL, NULL);
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (read(orders, &pid, sizeof pid) == sizeof pid) {
        if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
            fail("PTRACE_SEIZE");
        settle();
        ptrace(PTRACE_INTERRUPT, pid, NULL, NULL);
        waitpid(pid, NULL, __WALL);
        take_state(pid, &state);
        write_all(peer, &state, offsetof(struct state, vectors) + state.vectors_size);
        read_all(peer, &byte, 1); /* READY */
        write_all(peer, "", 1);   /* COMMIT */
        kill(pid, SIGKILL);
        /* Its parent cannot reap it before its tracer has. */
        waitpid(pid, NULL, __WALL);
    }
    _exit(0);
}

static uint64_t hand_over(struct shared *shared, int orders, int peer) {
    static struct state state;
    char byte;
    shared->last = now_ns();
    shared->longest = 0;
    pid_t husk = spawn(shared, 1), source = spawn(shared, 0);
    waitpid(husk, NULL, __WALL);
    settle();
    shared->longest = 0;
    if (write(orders, &source, sizeof source) != sizeof source)
        fail("order");
    read_all(peer, &state, offsetof(struct state, vectors));
    read_all(peer, state.vectors, state.vectors_size);
    put_state(husk, &state);
    write_all(peer, "", 1);
    read_all(peer, &byte, 1);
    ptrace(PTRACE_DETACH, husk, NULL, NULL);
    settle();
    uint64_t before = shared->last;
    /* On a busy machine it waits for a processor like anybody. */
    for (int i = 0; i < PATIENCE && shared->last == before; i++)
        settle();
    if (shared->last == before) {
        fprintf(stderr, "freeze_resume: the process does not run at the destination\n");
        exit(1);
    }
    kill(husk, SIGKILL);
    waitpid(husk, NULL, 0);
    waitpid(source, NULL, 0);
    return shared->longest;
}

int main(int argc, char **argv) {
    const char *address_text = "127.0.0.1", *netns = NULL;
    int rounds = 20, orders[2], ready[2], one = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--rounds"))
            rounds = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--address"))
            address_text = argv[i + 1];
        else if (!strcmp(argv[i], "--source-netns"))
            netns = argv[i + 1];
        else
            return 2;
    }
    if (rounds < 1 || rounds > ROUNDS)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    struct shared *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || inet_pton(AF_INET, address_text, &address.sin_addr) != 1 || pipe(orders) ||
        pipe(ready))
        fail("freeze_resume");
    pid_t server = fork();
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (netns && setns(open(netns, O_RDONLY | O_CLOEXEC), CLONE_NEWNET))
            fail("setns");
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
            getsockname(listener, (struct sockaddr *)&address, &length) ||
            write(ready[1], &address, sizeof address) != sizeof address)
            fail("listen");
        close(orders[1]);
        real_time();
        serve(listener, orders[0]);
    }
    close(ready[1]);
    if (read(ready[0], &address, sizeof address) != sizeof address)
        fail("server");
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    real_time();
    printf("{\"gaps_us\": [");
    for (int i = 0; i < rounds; i++) {
        fflush(stdout);
        printf("%s%.1f", i ? ", " : "", (double)hand_over(shared, orders[1], peer) / 1000);
    }
    printf("]}\n");
    kill(server, SIGKILL);
    return 0;
}
