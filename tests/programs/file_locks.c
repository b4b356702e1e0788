/*
 * feature: locks on files: flock(2), by duplicates and by several open files; open file description locks; POSIX read locks
 * limits: on one host a POSIX write lock is refused, since the source keeps it until it ends; leases are refused
 */
#include "check.h"
#include <sys/file.h>
#include <sys/wait.h>

/* Whether somebody else could lock it. */
static bool is_free(const char *path, int how) {
    pid_t child = SYS(fork());
    if (child == 0)
        _exit(flock(open(path, O_RDWR), how | LOCK_NB) == 0);
    int status;
    SYS(waitpid(child, &status, 0));
    return WEXITSTATUS(status) == 1;
}

static bool is_range_free(const char *path, short type, off_t start) {
    pid_t child = SYS(fork());
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 10};
    if (child == 0)
        _exit(fcntl(open(path, O_RDWR), F_SETLK, &lock) == 0);
    int status;
    SYS(waitpid(child, &status, 0));
    return WEXITSTATUS(status) == 1;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    const char *own = check_path("own"), *shared = check_path("shared"), *ranges = check_path("ranges"),
               *gone = check_path("gone");
    int first = SYS(open(own, O_RDWR | O_CREAT, 0600)), second = SYS(dup(first));
    SYS(flock(first, LOCK_EX));
    int one = SYS(open(shared, O_RDWR | O_CREAT, 0600)), two = SYS(open(shared, O_RDONLY));
    SYS(flock(one, LOCK_SH));
    SYS(flock(two, LOCK_SH));
    int three = SYS(open(ranges, O_RDWR | O_CREAT, 0600)), four = SYS(open(ranges, O_RDWR));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 10};
    SYS(fcntl(three, F_OFD_SETLK, &lock));
    lock = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 200, .l_len = 10};
    SYS(fcntl(four, F_SETLK, &lock));
    int unlinked = SYS(open(gone, O_RDWR | O_CREAT, 0600)), again = SYS(open(gone, O_RDWR));
    SYS(unlink(gone));
    SYS(flock(unlinked, LOCK_EX));
    check_move();
    CHECK(!is_free(own, LOCK_SH), "the exclusive lock is gone");
    close(first);
    CHECK(!is_free(own, LOCK_SH), "the duplicate does not have it");
    SYS(flock(second, LOCK_UN));
    for (int wait = 0; !is_free(own, LOCK_EX) && wait < 500; wait++)
        check_sleep(10);
    CHECK(is_free(own, LOCK_EX), "somebody else has it");
    close(one);
    CHECK(is_free(shared, LOCK_SH) && !is_free(shared, LOCK_EX), "the second shared lock is gone");
    close(two);
    for (int wait = 0; !is_free(shared, LOCK_EX) && wait < 500; wait++)
        check_sleep(10);
    CHECK(is_free(shared, LOCK_EX), "somebody else has a shared lock");
    CHECK(!is_range_free(ranges, F_RDLCK, 100), "the open file description's lock is gone");
    CHECK(is_range_free(ranges, F_RDLCK, 200) && !is_range_free(ranges, F_WRLCK, 200),
          "the POSIX lock is gone");
    CHECK(flock(again, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the unlinked file's lock is gone");
    return check_passed();
}
