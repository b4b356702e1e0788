/*
 * feature: POSIX AIO of the C library (aio_read(3)), whose threads do the work: requests that wait, and one that ends by a
 *          signal
 * limits: that of the kernel (io_setup) is refused
 */
#include "check.h"
#include <aio.h>

static volatile int told;

static void on_end(int number, siginfo_t *information, void *context) {
    (void)number, (void)context;
    told += information->si_value.sival_int;
}

static void expect(struct aiocb *request, const char *text) {
    const struct aiocb *const list[] = {request};
    while (aio_error(request) == EINPROGRESS)
        if (aio_suspend(list, 1, NULL) != 0)
            CHECK(errno == EINTR, "aio_suspend: %s", strerror(errno));
    CHECK(aio_error(request) == 0, "aio_error: %s", strerror(aio_error(request)));
    ssize_t length = aio_return(request);
    CHECK(length == (ssize_t)strlen(text) && memcmp((const char *)request->aio_buf, text, strlen(text)) == 0,
          "%zd bytes, not \"%s\"", length, text);
}

int main(int argc, char **argv) {
    static char first[16], second[16];
    struct sigaction action = {.sa_sigaction = on_end, .sa_flags = SA_SIGINFO | SA_RESTART};
    int one[2], two[2];
    check_start(argc, argv);
    SYS(sigaction(SIGRTMIN + 1, &action, NULL));
    SYS(pipe(one));
    SYS(pipe(two));
    struct aiocb waits = {.aio_fildes = one[0], .aio_buf = first, .aio_nbytes = sizeof(first)};
    struct aiocb tells = {.aio_fildes = two[0],
                          .aio_buf = second,
                          .aio_nbytes = sizeof(second),
                          .aio_sigevent = {.sigev_notify = SIGEV_SIGNAL,
                                           .sigev_signo = SIGRTMIN + 1,
                                           .sigev_value.sival_int = 7}};
    SYS(aio_read(&waits));
    SYS(aio_read(&tells));
    check_move();
    CHECK(aio_error(&waits) == EINPROGRESS && told == 0, "a request has ended: %d", aio_error(&waits));
    check_write(one[1], "late", 4);
    expect(&waits, "late");
    check_write(two[1], "later", 5);
    expect(&tells, "later");
    for (int tries = 0; tries < 1000 && told == 0; tries++)
        check_sleep(5);
    CHECK(told == 7, "the signal said %d", told);
    return check_passed();
}
