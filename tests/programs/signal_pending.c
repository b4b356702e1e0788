/*
 * feature: pending signals, of a thread and of the process, each with its information in its order
 */
#include "check.h"

static volatile int to_thread, to_process, values[8], count;
static volatile pid_t receiver, sender;
static volatile bool waiting, let_go;

static void on_thread_signal(int number) {
    to_thread += number;
    receiver = gettid();
}

static void on_process_signal(int number, siginfo_t *information, void *context) {
    to_process = number;
    sender = information->si_pid;
    (void)context;
}

static void on_queued(int number, siginfo_t *information, void *context) {
    CHECK(information->si_code == SI_QUEUE && information->si_pid == getpid() &&
              information->si_uid == getuid(),
          "signal %d: code %d from process %d of user %d", number, information->si_code, information->si_pid,
          (int)information->si_uid);
    values[count++] = information->si_value.sival_int;
    (void)context;
}

static void *body(void *argument) {
    sigset_t all, none;
    sigfillset(&all);
    sigemptyset(&none);
    PTHREAD(pthread_sigmask(SIG_SETMASK, &all, NULL));
    PTHREAD(pthread_kill(pthread_self(), SIGUSR1));
    waiting = true;
    while (!let_go)
        check_sleep(5);
    sigaddset(&none, SIGUSR2);
    PTHREAD(pthread_sigmask(SIG_SETMASK, &none, NULL));
    CHECK(to_thread == SIGUSR1 && receiver == gettid(), "the thread's signal did not come to it");
    return argument;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_thread_signal};
    sigset_t all, none;
    check_start(argc, argv);
    SYS(sigaction(SIGUSR1, &action, NULL));
    action = (struct sigaction){.sa_sigaction = on_process_signal, .sa_flags = SA_SIGINFO};
    SYS(sigaction(SIGUSR2, &action, NULL));
    action.sa_sigaction = on_queued;
    SYS(sigaction(SIGRTMIN + 1, &action, NULL));
    sigfillset(&all);
    sigemptyset(&none);
    PTHREAD(pthread_sigmask(SIG_SETMASK, &all, NULL));
    pthread_t thread = check_thread(body, NULL);
    while (!waiting)
        check_sleep(1);
    SYS(kill(getpid(), SIGUSR2));
    for (int i = 0; i < 5; i++)
        SYS(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 100 + i}));
    check_move();
    CHECK(to_thread == 0 && to_process == 0 && count == 0, "a blocked signal was delivered");
    let_go = true;
    PTHREAD(pthread_join(thread, NULL));
    PTHREAD(pthread_sigmask(SIG_SETMASK, &none, NULL));
    CHECK(to_process == SIGUSR2 && sender == getpid(), "the process's signal: %d from %d", to_process,
          sender);
    CHECK(count == 5, "%d of 5 queued signals came", count);
    for (int i = 0; i < 5; i++)
        CHECK(values[i] == 100 + i, "queued signal %d carries %d", i, values[i]);
    return check_passed();
}
