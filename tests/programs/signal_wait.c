/*
 * feature: threads waiting for signals: sigwaitinfo, sigtimedwait, sigsuspend, pause
 */
#include "check.h"

static volatile pid_t ids[4];
static pthread_t threads[4];

static void on_signal(int number) {
    (void)number;
}

static void *in_sigwaitinfo(void *argument) {
    sigset_t set;
    siginfo_t information;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    ids[0] = gettid();
    int number = sigwaitinfo(&set, &information);
    CHECK(number == SIGRTMIN + 1, "sigwaitinfo: %s", strerror(errno));
    return argument;
}

static void *in_sigtimedwait(void *argument) {
    sigset_t set;
    struct timespec limit = {60, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    ids[1] = gettid();
    int number = sigtimedwait(&set, NULL, &limit);
    CHECK(number == SIGRTMIN + 2, "sigtimedwait: %s", strerror(errno));
    return argument;
}

static void *in_sigsuspend(void *argument) {
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGUSR1);
    ids[2] = gettid();
    CHECK(sigsuspend(&set) == -1 && errno == EINTR, "sigsuspend: %s", strerror(errno));
    CHECK(argument == threads, "sigsuspend returned without a signal");
    PTHREAD(pthread_sigmask(SIG_BLOCK, NULL, &set));
    CHECK(sigismember(&set, SIGUSR1), "sigsuspend left its mask behind");
    return NULL;
}

static volatile bool sent;

static void *in_pause(void *argument) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    PTHREAD(pthread_sigmask(SIG_UNBLOCK, &set, NULL));
    ids[3] = gettid();
    CHECK(pause() == -1 && errno == EINTR && sent, "pause returned without a signal");
    return argument;
}

int main(int argc, char **argv) {
    static void *(*const bodies[])(void *) = {in_sigwaitinfo, in_sigtimedwait, in_sigsuspend, in_pause};
    static const int offsets[] = {1, 2};
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t set;
    check_start(argc, argv);
    SYS(sigaction(SIGUSR1, &action, NULL));
    SYS(sigaction(SIGUSR2, &action, NULL));
    sigfillset(&set);
    PTHREAD(pthread_sigmask(SIG_BLOCK, &set, NULL));
    for (int i = 0; i < 4; i++) {
        threads[i] = check_thread(bodies[i], threads);
        while (!ids[i])
            check_sleep(1);
        check_wait_asleep(ids[i]);
    }
    check_move();
    check_sleep(50);
    sent = true;
    for (int i = 0; i < 2; i++)
        PTHREAD(pthread_kill(threads[i], SIGRTMIN + offsets[i]));
    PTHREAD(pthread_kill(threads[2], SIGUSR1));
    PTHREAD(pthread_kill(threads[3], SIGUSR2));
    for (int i = 0; i < 4; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
