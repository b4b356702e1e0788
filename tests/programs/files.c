/*
 * feature: open files with their offsets and flags; duplicates share one offset
 * limits: files are opened by path on the destination; those open for writing must be the same there
 */
#include "check.h"

static int open_file(const char *name, int flags, const char *content) {
    int file = SYS(open(check_path(name), O_RDWR | O_CREAT, 0644));
    check_write(file, content, strlen(content));
    close(file);
    return SYS(open(check_path(name), flags));
}

static off_t offset(int file) {
    return SYS(lseek(file, 0, SEEK_CUR));
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    int read_only = open_file("read-only", O_RDONLY | O_CLOEXEC, "0123456789"),
        appending = open_file("appending", O_WRONLY | O_APPEND | O_NONBLOCK, "begin "),
        writing = open_file("writing", O_RDWR | O_SYNC | O_NOATIME, "0123456789"),
        path_only = SYS(open(check_path("read-only"), O_PATH)),
        high = SYS(fcntl(writing, F_DUPFD_CLOEXEC, 900)), other = SYS(open(check_path("writing"), O_RDONLY));
    SYS(dup2(high, 901));
    SYS(lseek(read_only, 3, SEEK_SET));
    SYS(lseek(writing, 5, SEEK_SET));
    SYS(lseek(other, 100000, SEEK_SET));
    int gone = SYS(dup(read_only));
    close(gone);
    int read_flags = SYS(fcntl(read_only, F_GETFL)), append_flags = SYS(fcntl(appending, F_GETFL)),
        write_flags = SYS(fcntl(writing, F_GETFL)), path_flags = SYS(fcntl(path_only, F_GETFL));
    check_move();
    CHECK(fcntl(gone, F_GETFD) == -1 && errno == EBADF, "a closed descriptor is open");
    for (int extra = 902; extra < 1024; extra++)
        CHECK(fcntl(extra, F_GETFD) == -1 && errno == EBADF, "descriptor %d was left behind", extra);
    CHECK(SYS(fcntl(read_only, F_GETFL)) == read_flags, "flags %#x, were %#x", fcntl(read_only, F_GETFL),
          read_flags);
    CHECK(SYS(fcntl(appending, F_GETFL)) == append_flags, "flags %#x, were %#x", fcntl(appending, F_GETFL),
          append_flags);
    CHECK(SYS(fcntl(writing, F_GETFL)) == write_flags, "flags %#x, were %#x", fcntl(writing, F_GETFL),
          write_flags);
    CHECK(SYS(fcntl(path_only, F_GETFL)) == path_flags, "flags %#x, were %#x", fcntl(path_only, F_GETFL),
          path_flags);
    CHECK(SYS(fcntl(read_only, F_GETFD)) == FD_CLOEXEC && SYS(fcntl(writing, F_GETFD)) == 0,
          "close-on-exec changed");
    CHECK(SYS(fcntl(high, F_GETFD)) == FD_CLOEXEC && SYS(fcntl(901, F_GETFD)) == 0,
          "close-on-exec of a duplicate");
    check_expect(read_only, "3456789", 7);
    check_write(appending, "end", 3);
    CHECK(offset(writing) == 5 && offset(high) == 5, "offsets %ld and %ld", (long)offset(writing),
          (long)offset(high));
    check_write(high, "ab", 2);
    CHECK(offset(writing) == 7 && offset(901) == 7, "duplicates no longer share an offset");
    CHECK(offset(other) == 100000, "a file opened twice shares its offset");
    SYS(lseek(other, 0, SEEK_SET));
    check_expect(other, "01234ab789", 10);
    CHECK(strcmp(check_read_file(check_path("appending"), NULL), "begin end") == 0,
          "the appended file holds \"%s\"", check_read_file(check_path("appending"), NULL));
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", path_only);
    CHECK(strcmp(check_read_file(link, NULL), "0123456789") == 0, "the O_PATH descriptor leads elsewhere");
    return check_passed();
}
