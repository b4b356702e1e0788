/*
 * feature: alternate signal stacks
 */
#include "check.h"

static pthread_barrier_t ready, moved;
static __thread char *stack;
static __thread bool on_it;

static void on_signal(int number) {
    char here = (char)number;
    on_it = &here >= stack && &here < stack + 65536;
}

static void set_and_check(pthread_barrier_t *before, pthread_barrier_t *after) {
    stack_t wanted = {.ss_size = 65536}, found;
    wanted.ss_sp = stack = malloc(wanted.ss_size);
    SYS(sigaltstack(&wanted, NULL));
    if (before)
        pthread_barrier_wait(before);
    if (after)
        pthread_barrier_wait(after);
    else
        check_move();
    SYS(sigaltstack(NULL, &found));
    CHECK(found.ss_sp == wanted.ss_sp && found.ss_size == wanted.ss_size && found.ss_flags == 0,
          "the alternate stack is %p of %zu bytes, flags %d", found.ss_sp, found.ss_size, found.ss_flags);
    SYS(raise(SIGUSR1));
    CHECK(on_it, "the handler did not run on the alternate stack");
}

static void *body(void *argument) {
    set_and_check(&ready, &moved);
    return argument;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    check_start(argc, argv);
    SYS(sigaction(SIGUSR1, &action, NULL));
    pthread_barrier_init(&ready, NULL, 2);
    pthread_barrier_init(&moved, NULL, 2);
    pthread_t thread = check_thread(body, NULL);
    pthread_barrier_wait(&ready);
    set_and_check(NULL, NULL);
    pthread_barrier_wait(&moved);
    PTHREAD(pthread_join(thread, NULL));
    return check_passed();
}
