/*
 * feature: an established TCP connection whose peer is on the source's host (lm-restore --tcp close gives it a clean end)
 * refused: connect
 */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    check_start(argc, argv);
    int listener = SYS(socket(AF_INET, SOCK_STREAM, 0)), client = SYS(socket(AF_INET, SOCK_STREAM, 0));
    SYS(bind(listener, (struct sockaddr *)&address, length));
    SYS(listen(listener, 5));
    SYS(getsockname(listener, (struct sockaddr *)&address, &length));
    SYS(connect(client, (struct sockaddr *)&address, length));
    int server = SYS(accept(listener, NULL, NULL));
    check_move();
    check_write(client, "hello", 5);
    check_expect(server, "hello", 5);
    return check_passed();
}
