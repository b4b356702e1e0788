/*
 * feature: FIFOs and unix sockets whose path has been removed, with what waits in them
 */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX}, after;
    socklen_t length = sizeof(after);
    check_start(argc, argv);
    const char *path = check_path("fifo");
    SYS(mkfifo(path, 0600));
    int both = SYS(open(path, O_RDWR)), writing = SYS(open(path, O_WRONLY)),
        reading = SYS(open(path, O_RDONLY));
    SYS(unlink(path));
    check_write(writing, "waits", 5);
    strcpy(address.sun_path, "bound");
    SYS(chdir(check_directory));
    int listener = SYS(socket(AF_UNIX, SOCK_STREAM, 0)), receiver = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    SYS(bind(listener, (struct sockaddr *)&address, sizeof(address)));
    SYS(listen(listener, 3));
    SYS(unlink("bound"));
    SYS(bind(receiver, (struct sockaddr *)&address, sizeof(address)));
    SYS(unlink("bound"));
    check_move();
    check_expect(reading, "waits", 5);
    check_write(both, "more", 4);
    check_expect(reading, "more", 4);
    CHECK(access(path, F_OK) == -1 && access("bound", F_OK) == -1, "a path is there again");
    SYS(getsockname(listener, (struct sockaddr *)&after, &length));
    CHECK(strcmp(after.sun_path, "bound") == 0, "its address is %s", after.sun_path);
    length = sizeof(after);
    SYS(getsockname(receiver, (struct sockaddr *)&after, &length));
    CHECK(strcmp(after.sun_path, "bound") == 0, "its address is %s", after.sun_path);
    close(writing);
    close(both);
    char byte;
    CHECK(SYS(read(reading, &byte, 1)) == 0, "somebody else can write to the FIFO");
    return check_passed();
}
