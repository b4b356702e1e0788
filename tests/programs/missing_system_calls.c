/*
 * feature: system calls that read and write pages that are missing (the kernel itself faults)
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"
#include <linux/futex.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1);
    int ends[2], pair[2];
    static char buffer[16 * PAGE];
    SYS(pipe(ends));
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int file = SYS(open(check_path("file"), O_RDWR | O_CREAT, 0600));
    check_move();
    /* Out of missing pages. */
    check_write(ends[1], memory + 100 * PAGE, 8 * PAGE);
    for (size_t got = 0; got < 8 * PAGE;)
        got += (size_t)SYS(read(ends[0], buffer + got, 8 * PAGE - got));
    for (size_t page = 0; page < 8; page++)
        missing_check_page("through a pipe", buffer, page, 100 + page, 1);
    check_write(file, memory + 200 * PAGE, 16 * PAGE);
    CHECK(SYS(pread(file, buffer, 16 * PAGE, 0)) == 16 * PAGE, "a short read");
    for (size_t page = 0; page < 16; page++)
        missing_check_page("through a file", buffer, page, 200 + page, 1);
    struct iovec parts[3] = {
        {memory + 400 * PAGE, PAGE}, {memory + 300 * PAGE, PAGE}, {memory + 500 * PAGE, PAGE}};
    CHECK(SYS(writev(pair[0], parts, 3)) == 3 * PAGE, "a short write");
    for (size_t got = 0; got < 3 * PAGE;)
        got += (size_t)SYS(recv(pair[1], buffer + got, 3 * PAGE - got, 0));
    missing_check_page("through a socket", buffer, 0, 400, 1);
    missing_check_page("through a socket", buffer, 1, 300, 1);
    missing_check_page("through a socket", buffer, 2, 500, 1);
    /* Into missing pages: the middle of each is written, its ends stay. */
    CHECK(SYS(pread(file, memory + 1000 * PAGE + 1024, 2048, 0)) == 2048, "a short read");
    CHECK(memcmp(memory + 1000 * PAGE + 1024, memory + 200 * PAGE, 2048) == 0, "read brought something else");
    CHECK(*(uint64_t *)(memory + 1000 * PAGE) == check_tag(1000 * WORDS, 1), "the page's beginning changed");
    CHECK(*(uint64_t *)(memory + 1001 * PAGE - 8) == check_tag(1001 * WORDS - 1, 1),
          "the page's end changed");
    CHECK(SYS(getrandom(memory + 1100 * PAGE + 8, 16, 0)) == 16, "getrandom");
    CHECK(*(uint64_t *)(memory + 1100 * PAGE) == check_tag(1100 * WORDS, 1), "the page's beginning changed");
    struct stat *status = (struct stat *)(memory + 1200 * PAGE + 64);
    SYS(fstat(file, status));
    CHECK(status->st_size == (off_t)(16 * PAGE), "fstat says %ld", (long)status->st_size);
    CHECK(*(uint64_t *)(memory + 1200 * PAGE) == check_tag(1200 * WORDS, 1), "the page's beginning changed");
    struct timespec *now = (struct timespec *)(memory + 1300 * PAGE);
    SYS(syscall(SYS_clock_gettime, CLOCK_REALTIME, now));
    CHECK(now->tv_sec > 1600000000, "clock_gettime says %ld", (long)now->tv_sec);
    /* A path and a futex word in missing memory. */
    uint32_t *word = (uint32_t *)(memory + 1400 * PAGE);
    long answer =
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, (uint32_t)check_tag(1400 * WORDS, 1) + 1, NULL, NULL, 0);
    CHECK(answer == -1 && errno == EAGAIN, "futex answers %ld: %s", answer, strerror(errno));
    return check_passed();
}
