/*
 * feature: what is opened with O_PATH alone: a symbolic link, a FIFO, the file of a socket, a device
 * limits: it must be there on the destination
 */
#include "check.h"

#include <sys/socket.h>
#include <sys/un.h>

static void check_type(int number, mode_t type, const char *what) {
    struct stat status;
    SYS(fstat(number, &status));
    CHECK((status.st_mode & S_IFMT) == type, "%s has mode %o", what, status.st_mode);
    CHECK(fcntl(number, F_GETFL) & O_PATH, "%s has flags %x", what, fcntl(number, F_GETFL));
    CHECK(read(number, &status, 1) == -1 && errno == EBADF, "%s can be read", what);
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "names"};
    char target[64] = "";
    check_start(argc, argv);
    SYS(chdir(check_path("")));
    SYS(symlink("nowhere/at/all", "link"));
    SYS(mkfifo("fifo", 0600));
    int server = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(bind(server, (struct sockaddr *)&address, sizeof(address)));
    close(server);
    int link = SYS(open("link", O_PATH | O_NOFOLLOW | O_CLOEXEC)), fifo = SYS(open("fifo", O_PATH)),
        file = SYS(open("names", O_PATH)), null = SYS(open("/dev/null", O_PATH)), copy = SYS(dup(fifo));
    int flags = SYS(fcntl(link, F_GETFL));
    check_move();
    check_type(link, S_IFLNK, "the link");
    check_type(fifo, S_IFIFO, "the FIFO");
    check_type(file, S_IFSOCK, "the file of the socket");
    check_type(null, S_IFCHR, "the device");
    check_type(copy, S_IFIFO, "the copy");
    CHECK(SYS(fcntl(link, F_GETFL)) == flags, "flags %x, were %x", fcntl(link, F_GETFL), flags);
    CHECK(SYS(fcntl(link, F_GETFD)) == FD_CLOEXEC && SYS(fcntl(fifo, F_GETFD)) == 0, "close-on-exec changed");
    SYS(readlinkat(link, "", target, sizeof(target) - 1));
    CHECK(strcmp(target, "nowhere/at/all") == 0, "the link leads to %s", target);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fifo);
    int both = SYS(open(path, O_RDWR));
    CHECK(SYS(write(both, "x", 1)) == 1 && SYS(read(both, target, 1)) == 1, "the FIFO cannot be opened");
    return check_passed();
}
