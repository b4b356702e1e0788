/*
 * feature: unix socketpairs inside the process: stream, datagram, seqpacket; data on its way, also more than the
 *          buffers would take now, half-closed ones
 * limits: descriptors on their way (SCM_RIGHTS), and an urgent byte (MSG_OOB), are refused by name. An empty message among
 *         datagrams or packets is lost if an earlier try to move it was given up in the freeze
 */
#include "check.h"
#include <sys/socket.h>

int main(int argc, char **argv) {
    int ended[2], unsigned_one[2], stream[2], datagram[2], sequence[2], half[2],
        buffer_size = 100000, small = 2000, found = 0, on = 1;
    socklen_t length = sizeof(found);
    static char block[20000], got[20000];
    char text[100];
    check_start(argc, argv);
    SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, stream));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagram));
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sequence));
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, unsigned_one));
    SYS(setsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &buffer_size, sizeof(buffer_size)));
    SYS(setsockopt(datagram[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
    SYS(getsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &buffer_size, &length));
    for (size_t i = 0; i < sizeof(block); i++)
        block[i] = (char)check_tag(i, 2);
    check_write(stream[1], block, sizeof(block));
    SYS(setsockopt(stream[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)));
    SYS(getsockopt(stream[1], SOL_SOCKET, SO_SNDBUF, &small, &length));
    check_write(stream[0], "back", 4);
    check_write(datagram[0], "first", 5);
    check_write(datagram[0], "", 0);
    check_write(datagram[0], "third", 5);
    check_write(sequence[1], "packet", 6);
    check_write(sequence[1], "another", 7);
    /* Empty, and not the end. */
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ended));
    check_write(ended[1], "", 0);
    check_write(ended[1], "last", 4);
    SYS(shutdown(ended[1], SHUT_WR));
    check_write(half[0], "last words", 10);
    SYS(shutdown(half[0], SHUT_WR));
    /* Sent before anybody asked who sends. */
    check_write(unsigned_one[0], "unsigned", 8);
    SYS(setsockopt(unsigned_one[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
    check_move();
    size_t used = 0;
    for (ssize_t n; used < sizeof(got) && (n = read(stream[0], got + used, sizeof(got) - used)) > 0;)
        used += (size_t)n;
    CHECK(used == sizeof(block) && memcmp(got, block, used) == 0, "%zu bytes on their way changed", used);
    check_expect(stream[1], "back", 4);
    CHECK(read(stream[0], text, 1) == -1 && errno == EAGAIN, "there is more than was sent");
    struct ucred sender;
    char control[CMSG_SPACE(sizeof(sender))];
    struct iovec part = {text, sizeof(text)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    CHECK(SYS(recvmsg(datagram[1], &message, 0)) == 5 && memcmp(text, "first", 5) == 0, "a datagram changed");
    memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sender));
    CHECK(sender.pid == getpid() && sender.uid == getuid() && sender.gid == getgid(), "sent by %d, %d:%d",
          sender.pid, (int)sender.uid, (int)sender.gid);
    CHECK(SYS(recvmsg(unsigned_one[1], &message, 0)) == 8 && memcmp(text, "unsigned", 8) == 0,
          "a datagram changed");
    memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sender));
    CHECK(sender.pid == 0, "a datagram that was sent by nobody is %d's, %d:%d", sender.pid, (int)sender.uid,
          (int)sender.gid);
    SYS(getsockopt(unsigned_one[1], SOL_SOCKET, SO_PASSCRED, &found, &length));
    CHECK(found == 1, "SO_PASSCRED is off");
    CHECK(SYS(recv(datagram[1], text, 100, 0)) == 0, "an empty datagram changed");
    CHECK(SYS(recv(datagram[1], text, 100, 0)) == 5 && memcmp(text, "third", 5) == 0, "a datagram changed");
    CHECK(SYS(recv(sequence[0], text, 100, 0)) == 6 && memcmp(text, "packet", 6) == 0, "a packet changed");
    CHECK(SYS(recv(sequence[0], text, 100, 0)) == 7 && memcmp(text, "another", 7) == 0, "a packet changed");
    CHECK(SYS(recv(ended[0], text, 100, 0)) == 0, "an empty packet changed");
    CHECK(SYS(recv(ended[0], text, 100, 0)) == 4 && memcmp(text, "last", 4) == 0, "a packet changed");
    CHECK(SYS(recv(ended[0], text, 100, 0)) == 0, "the shut-down direction is open");
    check_expect(half[1], "last words", 10);
    CHECK(SYS(read(half[1], text, 1)) == 0, "the shut-down direction is open");
    check_write(half[1], "answer", 6);
    check_expect(half[0], "answer", 6);
    SYS(getsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &found, &length));
    CHECK(found == buffer_size, "the receive buffer is %d, was %d", found, buffer_size);
    SYS(getsockopt(stream[1], SOL_SOCKET, SO_SNDBUF, &found, &length));
    CHECK(found == small, "the send buffer is %d, was %d", found, small);
    SYS(getsockopt(datagram[1], SOL_SOCKET, SO_PASSCRED, &found, &length));
    CHECK(found == 1, "SO_PASSCRED is off");
    CHECK(SYS(fcntl(stream[1], F_GETFL)) & O_NONBLOCK && SYS(fcntl(datagram[0], F_GETFD)) == FD_CLOEXEC,
          "flags changed");
    close(sequence[1]);
    CHECK(SYS(recv(sequence[0], text, 100, 0)) == 0, "somebody else holds the other end");
    return check_passed();
}
