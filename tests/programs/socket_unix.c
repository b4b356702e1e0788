/*
 * feature: unix sockets that listen by path and by abstract name, and bound datagram sockets
 * limits: abstract names belong to a network namespace
 */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

static socklen_t fill(struct sockaddr_un *name, bool abstract, const char *kind) {
    memset(name, 0, sizeof(*name));
    name->sun_family = AF_UNIX;
    if (!abstract)
        return (
            socklen_t)(2 +
                       snprintf(name->sun_path, sizeof(name->sun_path), "%.90s/%s", check_directory, kind) +
                       1);
    return (socklen_t)(2 + 1 +
                       snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "lm-%d-%s", getpid(), kind));
}

static void talk(int type, int listener, const struct sockaddr_un *name, socklen_t length) {
    int client = SYS(socket(AF_UNIX, type, 0));
    SYS(connect(client, (const struct sockaddr *)name, length));
    int server = type == SOCK_DGRAM ? listener : SYS(accept(listener, NULL, NULL));
    check_write(client, "hello", 5);
    char text[5] = "";
    CHECK(SYS(recv(server, text, 5, 0)) == 5 && memcmp(text, "hello", 5) == 0, "received \"%.5s\"", text);
    close(client);
    if (server != listener)
        close(server);
}

int main(int argc, char **argv) {
    static const int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    static const char *const kinds[] = {"stream", "abstract", "datagram", "sequence"};
    struct sockaddr_un names[COUNT(types)];
    socklen_t lengths[COUNT(types)];
    int sockets[COUNT(types)];
    check_start(argc, argv);
    for (size_t i = 0; i < COUNT(types); i++) {
        sockets[i] = SYS(socket(AF_UNIX, types[i], 0));
        lengths[i] = fill(&names[i], i == 1, kinds[i]);
        SYS(bind(sockets[i], (struct sockaddr *)&names[i], lengths[i]));
        if (types[i] != SOCK_DGRAM)
            SYS(listen(sockets[i], 9));
    }
    SYS(chmod(check_path("stream"), 0640));
    check_move();
    for (size_t i = 0; i < COUNT(types); i++)
        talk(types[i], sockets[i], &names[i], lengths[i]);
    struct stat status;
    SYS(stat(check_path("stream"), &status));
    CHECK((status.st_mode & 0777) == 0640, "the socket's mode is %o", status.st_mode & 0777);
    return check_passed();
}
