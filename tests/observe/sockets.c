/* Sockets: every option of every level, by its number, and the data that waits in them. */
#include "observer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* An option, and why it is left out. */
struct left_out {
    int level, name;
    const char *reason;
};

static const struct left_out not_compared[] = {
    {SOL_SOCKET, SO_ERROR, "reading it takes it"},
    {SOL_SOCKET, SO_PEERCRED, "the process that made a socketpair: at the destination that is lm-restore"},
    {SOL_SOCKET, 59, "SO_PEERGROUPS: of that process"},
    {SOL_SOCKET, 57, "SO_COOKIE: a number of this kernel's"},
    {SOL_SOCKET, 71, "SO_NETNS_COOKIE: a number of the network namespace, which is another one"},
    {SOL_SOCKET, 77, "SO_PEERPIDFD: reading it makes a descriptor"},
    {SOL_SOCKET, 55, "SO_MEMINFO: what the kernel has allocated"},
    {SOL_SOCKET, SO_INCOMING_CPU, "the processor that the last packet came to"},
    {SOL_SOCKET, 56, "SO_INCOMING_NAPI_ID: the device queue that the last packet came through"},
    {IPPROTO_TCP, TCP_INFO, "counters and times"},
    {IPPROTO_TCP, TCP_QUICKACK, "of the moment"},
    {IPPROTO_TCP, 26, "TCP_CC_INFO: counters of the congestion control"},
    {IPPROTO_TCP, TCP_TIMESTAMP, "a clock"},
    {IPPROTO_IP, 14, "IP_MTU: of the present route"},
    {IPPROTO_IPV6, 24, "IPV6_MTU: of the present route"},
};

static const struct left_out not_set[] = {
    {IPPROTO_TCP, 19, "TCP_REPAIR: for tools of this kind"},
    {IPPROTO_IPV6, 1, "IPV6_ADDRFORM: makes it an IPv4 socket"},
    {SOL_SOCKET, SO_PEEK_OFF, "it moves when a socket is peeked into, which is how its data is observed"},
};

/* What is told of who sent a message: refused where messages wait that were sent before this was asked for. So is what is
 * bound to a network interface that is not there. */
static bool is_refused(int level, int name, int value) {
    return level == SOL_SOCKET &&
           (name == SO_PASSCRED || name == 76 /* SO_PASSPIDFD */ || (name == SO_BINDTOIFINDEX && value > 1));
}

static bool is_in(const struct left_out *list, size_t count, int level, int name) {
    for (size_t i = 0; i < count; i++)
        if (list[i].level == level && list[i].name == name)
            return true;
    return false;
}

static const struct {
    int level, most;
} levels[] = {{SOL_SOCKET, 84}, {IPPROTO_IP, 60}, {IPPROTO_IPV6, 84}, {IPPROTO_TCP, 50}, {IPPROTO_UDP, 110}};

static int new_socket(struct draw *from) {
    static const int families[] = {AF_INET, AF_INET6, AF_UNIX};
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    static const int flags[] = {0, SOCK_NONBLOCK, SOCK_CLOEXEC};
    int family = DRAW_OF(from, families), type = DRAW_OF(from, types);
    if (family != AF_UNIX && type == SOCK_SEQPACKET)
        type = SOCK_STREAM;
    return socket(family, type | DRAW_OF(from, flags), 0);
}

static void bind_somewhere(struct draw *from, int one) {
    struct sockaddr_storage present = {0}, wanted = {0};
    socklen_t length = sizeof(present);
    getsockname(one, (struct sockaddr *)&present, &length);
    wanted.ss_family = present.ss_family;
    length = sizeof(struct sockaddr_in);
    if (present.ss_family == AF_INET) {
        ((struct sockaddr_in *)&wanted)->sin_addr.s_addr =
            draw(from, 2) ? htonl(INADDR_LOOPBACK) : INADDR_ANY;
    } else if (present.ss_family == AF_INET6) {
        length = sizeof(struct sockaddr_in6);
        ((struct sockaddr_in6 *)&wanted)->sin6_addr = draw(from, 2) ? in6addr_loopback : in6addr_any;
    } else {
        struct sockaddr_un *name = (struct sockaddr_un *)&wanted;
        snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "observer-%d-%d", getpid(), one);
        length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name->sun_path + 1));
    }
    int result = bind(one, (struct sockaddr *)&wanted, length);
    did("bind(%d) = %d", one, result);
    if (result == 0 && draw(from, 2)) {
        int backlog = (int)draw(from, 20);
        did("listen(%d, %d) = %d", one, backlog, listen(one, backlog));
    }
}

static void change_socket(struct draw *from) {
    int number = draw_descriptor(from);
    put_descriptor(new_socket(from), number);
    did("socket = %d", number);
    if (draw(from, 2))
        bind_somewhere(from, number);
}

static void change_pair(struct draw *from) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int pair[2], number = draw_descriptor(from) & ~1, type = DRAW_OF(from, types);
    char data[3000];
    if (socketpair(AF_UNIX, type | (draw(from, 2) ? SOCK_CLOEXEC : 0), 0, pair) != 0)
        return;
    memset(data, 'A' + (int)draw(from, 26), sizeof(data));
    for (uint64_t i = draw(from, 4); i; i--)
        send(pair[draw(from, 2)], data, 1 + draw(from, sizeof(data) - 1), MSG_DONTWAIT);
    if (draw(from, 5) == 0)
        shutdown(pair[0], (int)draw(from, 3));
    put_descriptor(pair[0], number);
    put_descriptor(pair[1], number + 1);
    did("socketpair(%d) = %d, %d", type, number, number + 1);
}

static int domain_of(int one) {
    int domain = -1;
    socklen_t length = sizeof(domain);
    return getsockopt(one, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 ? domain : -1;
}

static int draw_socket(struct draw *from) {
    int first = (int)draw(from, DESCRIPTORS);
    for (int i = 0; i < DESCRIPTORS; i++) {
        int number = FIRST_DESCRIPTOR + (first + i) % DESCRIPTORS;
        if (domain_of(number) >= 0)
            return number;
    }
    return -1;
}

static void change_option(struct draw *from) {
    static const int values[] = {0, 1, 1, 1, 2, 3, 7, 16, 64, 255, 1000, 4096, 100000};
    static const socklen_t lengths[] = {4, 4, 4, 4, 8, 16};
    int one = draw_socket(from);
    size_t which = draw(from, COUNT(levels));
    /* Aimed at levels that it has. */
    if (one >= 0 && draw(from, 3) != 0)
        which = domain_of(one) == AF_UNIX    ? 0
                : domain_of(one) == AF_INET6 ? draw(from, 5)
                                             : draw(from, 5) % 4;
    int level = levels[which].level, name = 1 + (int)draw(from, (uint64_t)levels[which].most);
    int value[4] = {DRAW_OF(from, values), DRAW_OF(from, values), 0, 0};
    socklen_t length = DRAW_OF(from, lengths);
    if (one < 0 || is_in(not_set, COUNT(not_set), level, name) ||
        (is_refused(level, name, value[0]) && !may_be_refused()))
        return;
    int result = setsockopt(one, level, name, value, length);
    if (result == 0)
        did("setsockopt(%d, %d, %d, {%d, %d}, %u) = 0", one, level, name, value[0], value[1], length);
}

static void change_options(struct draw *from) {
    for (int i = 0; i < 20; i++)
        change_option(from);
}

static void change_special(struct draw *from) {
    static const char *const controls[] = {"cubic", "reno", "bbr"};
    struct ip_mreqn group = {.imr_multiaddr.s_addr = htonl(0xe0000100u + (uint32_t)draw(from, 5)),
                             .imr_ifindex = 1};
    struct sock_filter code[] = {{BPF_RET | BPF_K, 0, 0, 0xffff}};
    struct sock_fprog filter = {1, code};
    int one = draw_socket(from), result = 0, kind = (int)draw(from, may_be_refused() ? 4 : 2);
    if (one < 0)
        return;
    const char *control = DRAW_OF(from, controls);
    if (kind == 0)
        result = setsockopt(one, IPPROTO_TCP, TCP_CONGESTION, control, (socklen_t)strlen(control));
    else if (kind == 1)
        result = setsockopt(one, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2);
    else if (kind == 2)
        result = setsockopt(one, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group));
    else
        result = setsockopt(one, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter));
    if (result == 0)
        did("special option %d of %d", kind, one);
}

static void observe_options(struct report *report, int one) {
    size_t most = domain_of(one) == AF_UNIX ? 1 : COUNT(levels);
    for (size_t i = 0; i < most; i++) {
        for (int name = 1; name <= levels[i].most; name++) {
            char key[64];
            unsigned char value[256] = {0};
            socklen_t length = sizeof(value);
            if (is_in(not_compared, COUNT(not_compared), levels[i].level, name) ||
                getsockopt(one, levels[i].level, name, value, &length) != 0)
                continue;
            snprintf(key, sizeof(key), "socket %d option %d/%d", one, levels[i].level, name);
            say_bytes(report, key, value, length < sizeof(value) ? length : sizeof(value));
        }
    }
}

static void observe_sockets(struct report *report) {
    for (int one = FIRST_DESCRIPTOR; one < FIRST_DESCRIPTOR + DESCRIPTORS; one++) {
        char key[64], data[8192];
        struct sockaddr_storage address = {0};
        socklen_t length = sizeof(address);
        if (domain_of(one) < 0)
            continue;
        snprintf(key, sizeof(key), "socket %d name", one);
        if (getsockname(one, (struct sockaddr *)&address, &length) == 0)
            say_bytes(report, key, &address, length);
        memset(&address, 0, sizeof(address));
        length = sizeof(address);
        snprintf(key, sizeof(key), "socket %d peer", one);
        if (getpeername(one, (struct sockaddr *)&address, &length) == 0)
            say_bytes(report, key, &address, length);
        observe_options(report, one);
        /* An error that waits would be taken by it. */
        struct pollfd wanted = {.fd = one, .events = POLLIN};
        bool readable = domain_of(one) == AF_UNIX && poll(&wanted, 1, 0) == 1 && !(wanted.revents & POLLERR);
        ssize_t waiting = readable ? recv(one, data, sizeof(data), MSG_PEEK | MSG_DONTWAIT) : -1;
        snprintf(key, sizeof(key), "socket %d waiting", one);
        if (waiting >= 0)
            say(report, key, "%zd, %.1s to %.1s", waiting, data, waiting ? data + waiting - 1 : data);
    }
}

/* A socket in which an error waits is refused, since reading the error would take it. */
static void change_errors(struct draw *from) {
    (void)from;
    for (int one = FIRST_DESCRIPTOR; one < FIRST_DESCRIPTOR + DESCRIPTORS && !may_be_refused(); one++) {
        struct pollfd wanted = {.fd = one};
        int error = 0;
        socklen_t length = sizeof(error);
        if (domain_of(one) == AF_UNIX && poll(&wanted, 1, 0) == 1 && wanted.revents & POLLERR)
            getsockopt(one, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error)
            did("read the error of %d", one);
    }
}

static const struct aspect sockets = {"socket", false, change_socket, observe_sockets};
static const struct aspect pairs = {"socketpair", false, change_pair, NULL};
static const struct aspect options = {"options", false, change_options, NULL};
static const struct aspect special = {"special options", false, change_special, NULL};

const struct aspect after_each = {"errors", false, change_errors, NULL};

const struct aspect *const socket_aspects[] = {&sockets, &pairs, &options, &special, NULL};
