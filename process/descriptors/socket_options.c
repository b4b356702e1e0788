#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "process/descriptors/socket_options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "process/descriptors/socket_option_table.h"

#ifndef SO_BUF_LOCK /* Linux 5.14 */
#define SO_BUF_LOCK 72
#endif
#ifndef SOCK_SNDBUF_LOCK /* linux/socket.h, which a C library's header excludes */
#define SOCK_SNDBUF_LOCK 1
#define SOCK_RCVBUF_LOCK 2
#endif

enum {
    LARGEST_VALUE = BPF_MAXINSNS * sizeof(struct sock_filter),
    LARGEST_SOURCES = 1024,
    /* Not an option: the number and name of an interface that later records are about. */
    LEVEL_OF_INTERFACES = UINT16_MAX,
    /* Beside the number of an option: a new socket has the same value. A kernel that lacks the option is none the worse. */
    USUAL = 1 << 15,
};

/* A record: this, and the value. */
struct record {
    uint16_t level;
    uint16_t number;
    uint16_t length;
};

struct interface {
    uint32_t number;
    char name[IFNAMSIZ];
};

struct writer {
    int socket;
    bool connected;
    bool grows; /* a TCP connection */
    char *room;
    size_t size;
    size_t used;
    const char *usual; /* the options of a new socket */
    size_t usual_length;
    size_t usual_at;
};

static void free_pointer(void *pointer) {
    free(*(void **)pointer);
}

#define FREED_AT_END __attribute__((cleanup(free_pointer)))

static int integer_option(int number, int level, int option) {
    int value = 0;
    socklen_t length = sizeof(value);

    return getsockopt(number, level, option, &value, &length) == 0 ? value : -errno;
}

static enum lm_sockets kind_of(int number) {
    int family = integer_option(number, SOL_SOCKET, SO_DOMAIN);
    int type = integer_option(number, SOL_SOCKET, SO_TYPE);
    int protocol = integer_option(number, SOL_SOCKET, SO_PROTOCOL);
    bool six = family == AF_INET6;

    if (family == AF_UNIX)
        return LM_UNIX;
    if (family == AF_NETLINK)
        return LM_NETLINK;
    if (family != AF_INET && !six)
        return 0;
    if (protocol == IPPROTO_TCP && type == SOCK_STREAM)
        return six ? LM_TCP6 : LM_TCP4;
    if (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE)
        return (six ? LM_UDP6 : LM_UDP4) | (protocol == IPPROTO_UDPLITE ? LM_LITE : 0);
    return six ? LM_PING6 : LM_PING4;
}

/* Reads the record at `*at` and goes on to the next; false at the end, or where there is none. */
static bool next(const char *options, size_t length, size_t *at, struct record *record, const char **value) {
    if (length - *at < sizeof(*record))
        return false;
    memcpy(record, options + *at, sizeof(*record));
    if (length - *at - sizeof(*record) < record->length)
        return false;
    *value = options + *at + sizeof(*record);
    *at += sizeof(*record) + record->length;
    return true;
}

/* Has a new socket the same? Both are written in one order. */
static bool is_usual(struct writer *writer, const struct record *wanted, const void *value) {
    struct record record;
    const char *found;

    for (size_t at = writer->usual_at; next(writer->usual, writer->usual_length, &at, &record, &found);)
        if (record.level == wanted->level && record.number == wanted->number) {
            writer->usual_at = at;
            return record.length == wanted->length && memcmp(found, value, record.length) == 0;
        }
    return false;
}

static void put(struct writer *writer, int level, int number, const void *value, size_t length) {
    struct record record = {.level = (uint16_t)level, .number = (uint16_t)number, .length = (uint16_t)length};

    if (is_usual(writer, &record, value))
        record.number |= USUAL;
    if (writer->used + sizeof(record) + length <= writer->size) {
        memcpy(writer->room + writer->used, &record, sizeof(record));
        memcpy(writer->room + writer->used + sizeof(record), value, length);
    }
    writer->used += sizeof(record) + length;
}

static void put_interface(struct writer *writer, uint32_t number) {
    struct ifreq request = {.ifr_ifindex = (int)number};
    struct interface interface = {.number = number};

    if (number == 0 || ioctl(writer->socket, SIOCGIFNAME, &request) != 0)
        return;
    memcpy(interface.name, request.ifr_name, IFNAMSIZ - 1);
    put(writer, LEVEL_OF_INTERFACES, 0, &interface, sizeof(interface));
}

static uint32_t interface_in(const struct lm_option *option, const void *value) {
    uint32_t number;

    memcpy(&number, value, sizeof(number));
    return option->treatment == LM_INTERFACE ? number : ntohl(number);
}

/* Where there is room for the value of the next record. */
static char *next_value(struct writer *writer, size_t wanted) {
    size_t at = writer->used + sizeof(struct record);

    return at + wanted <= writer->size ? writer->room + at : NULL;
}

static bool is_connected(int number) {
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);

    return getpeername(number, (struct sockaddr *)&peer, &length) == 0;
}

/* What the kernel says there of a connection is where the last packet came, and what it has come to by itself. */
static bool is_of_connection(const struct lm_option *option) {
    return (option->level == SOL_SOCKET && option->number == SO_INCOMING_CPU) ||
           (option->level == IPPROTO_TCP &&
            (option->number == TCP_MAXSEG || option->number == TCP_WINDOW_CLAMP));
}

static void put_option(struct writer *writer, const struct lm_option *option) {
    char value[4096];
    socklen_t length = sizeof(value);

    if (writer->connected && is_of_connection(option))
        return;
    if (getsockopt(writer->socket, option->level, option->number, value, &length) != 0) {
        /* The interface is gone, and the socket is still bound to its number. What a kernel, or this protocol, does not
         * have is no option of the socket. */
        if (errno == ENODEV && option->level == SOL_SOCKET && option->number == SO_BINDTODEVICE)
            put(writer, SOL_SOCKET, SO_BINDTOIFINDEX, "\1", 1);
        return;
    }
    if (length > sizeof(value))
        return;
    if (option->treatment == LM_INTERFACE || option->treatment == LM_INTERFACE_IN_NETWORK_ORDER)
        put_interface(writer, interface_in(option, value));
    put(writer, option->level, option->number, value, length);
}

/* Sizes that nobody has fixed, and that a new socket has too, are left to the destination's kernel. */
static void put_sizes(struct writer *writer) {
    static const struct {
        int number, lock;
    } sizes[] = {{SO_SNDBUF, SOCK_SNDBUF_LOCK}, {SO_RCVBUF, SOCK_RCVBUF_LOCK}};
    int locked = integer_option(writer->socket, SOL_SOCKET, SO_BUF_LOCK);

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int size = integer_option(writer->socket, SOL_SOCKET, sizes[i].number);
        struct record record = {SOL_SOCKET, (uint16_t)sizes[i].number, sizeof(size)};

        /* Of a connection they grow by themselves, and move with it (tcp_repair.h). */
        if ((locked > 0 && locked & sizes[i].lock) || (!writer->grows && !is_usual(writer, &record, &size)))
            put(writer, SOL_SOCKET, sizes[i].number, &size, sizeof(size));
    }
}

static void put_filter(struct writer *writer) {
    socklen_t instructions = 0;
    char *room;

    /* With no room given it tells how many instructions there are; eBPF has none of the classic kind to show. */
    if (getsockopt(writer->socket, SOL_SOCKET, SO_GET_FILTER, NULL, &instructions) != 0) {
        if (errno == EACCES)
            put(writer, SOL_SOCKET, SO_ATTACH_BPF, "\1", 1);
        return;
    }
    if (instructions == 0)
        return;
    room = next_value(writer, instructions * sizeof(struct sock_filter));
    if (room && getsockopt(writer->socket, SOL_SOCKET, SO_GET_FILTER, room, &instructions) != 0)
        return;
    /* The value is there already. */
    if (room)
        memcpy(room - sizeof(struct record),
               &(struct record){SOL_SOCKET, SO_ATTACH_FILTER,
                                (uint16_t)(instructions * sizeof(struct sock_filter))},
               sizeof(struct record));
    writer->used += sizeof(struct record) + instructions * sizeof(struct sock_filter);
}

static struct group_filter *make_filter(const struct lm_group *group) {
    struct group_filter *filter = calloc(1, GROUP_FILTER_SIZE(LARGEST_SOURCES));

    if (!filter)
        return NULL;
    filter->gf_interface = group->interface;
    filter->gf_numsrc = LARGEST_SOURCES;
    filter->gf_group.ss_family = (sa_family_t)group->family;
    if (group->family == AF_INET)
        memcpy(&((struct sockaddr_in *)&filter->gf_group)->sin_addr, group->address, 4);
    else
        memcpy(&((struct sockaddr_in6 *)&filter->gf_group)->sin6_addr, group->address, 16);
    return filter;
}

static void put_group(struct writer *writer, const struct lm_group *group) {
    FREED_AT_END struct group_filter *filter = make_filter(group);
    socklen_t length = GROUP_FILTER_SIZE(LARGEST_SOURCES);
    int level = group->family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;

    /* EADDRNOTAVAIL: this socket has not joined it. */
    if (!filter || getsockopt(writer->socket, level, MCAST_MSFILTER, filter, &length) != 0 ||
        filter->gf_numsrc > LARGEST_SOURCES)
        return;
    put_interface(writer, group->interface);
    put(writer, level, MCAST_MSFILTER, filter, GROUP_FILTER_SIZE(filter->gf_numsrc));
}

long lm_read_socket_options(int number, const char *usual, size_t usual_length, const struct lm_group *groups,
                            unsigned int group_count, char *room, size_t size) {
    struct writer writer = {
        .socket = number, .room = room, .size = size, .usual = usual, .usual_length = usual_length};
    enum lm_sockets kind = kind_of(number);

    writer.connected = is_connected(number);
    writer.grows = writer.connected && kind & LM_TCP;
    for (size_t i = 0; i < lm_option_count; i++) {
        const struct lm_option *option = &lm_options[i];

        if (!(option->sockets & kind))
            continue;
        if (option->number == SO_SNDBUF && option->level == SOL_SOCKET)
            put_sizes(&writer);
        else if (option->number == SO_ATTACH_FILTER && option->level == SOL_SOCKET)
            put_filter(&writer);
        else if (option->treatment != LM_SPECIAL && option->treatment != LM_SIZE)
            put_option(&writer, option);
    }
    for (unsigned int i = 0; i < group_count; i++)
        if (kind & (groups[i].family == AF_INET ? LM_DATAGRAM : LM_DATAGRAM6))
            put_group(&writer, &groups[i]);
    return writer.used <= size ? (long)writer.used : -ENOSPC;
}

/* The option that a record is of; the mark is taken off the record. */
static const struct lm_option *option_of(struct record *record, bool *usual) {
    *usual = record->level != LEVEL_OF_INTERFACES && record->number & USUAL;
    if (*usual)
        record->number &= USUAL - 1;
    for (size_t i = 0; i < lm_option_count; i++)
        if (lm_options[i].level == record->level && lm_options[i].number == record->number)
            return &lm_options[i];
    return NULL;
}

static bool is_set(const char *value, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (value[i])
            return true;
    return false;
}

const char *lm_refused_socket_option(const char *options, size_t length, size_t *at) {
    struct record record;
    const char *value;
    bool usual;

    while (next(options, length, at, &record, &value)) {
        const struct lm_option *option = option_of(&record, &usual);

        if (option && option->treatment == LM_REFUSED && is_set(value, record.length))
            return option->name;
    }
    return NULL;
}

int lm_recorded_option(const char *options, size_t length, int level, int number) {
    struct record record;
    const char *value;
    int found;

    for (size_t at = 0; next(options, length, &at, &record, &value);)
        if (record.level == level && (record.number & ~USUAL) == number && record.length == sizeof(found)) {
            memcpy(&found, value, sizeof(found));
            return found;
        }
    return 0;
}

/* Repair sets the first two; the others would end a connection of which nothing gets through (tcp_connection.py). */
static bool is_set_in_repair(const struct record *record) {
    const int number = record->number & ~USUAL;

    return (record->level == SOL_SOCKET && (number == SO_REUSEADDR || number == SO_KEEPALIVE)) ||
           (record->level == IPPROTO_TCP && (number == TCP_REPAIR || number == TCP_USER_TIMEOUT));
}

static bool next_kept(const char *options, size_t length, size_t *at, struct record *record,
                      const char **value) {
    while (next(options, length, at, record, value))
        if (!is_set_in_repair(record))
            return true;
    return false;
}

static bool is_same_in_repair(const char *before, size_t before_length, const char *options, size_t length) {
    size_t first = 0, second = 0;
    struct record old, now;
    const char *old_value, *now_value;

    while (next_kept(before, before_length, &first, &old, &old_value)) {
        if (!next_kept(options, length, &second, &now, &now_value) || memcmp(&old, &now, sizeof(old)) != 0 ||
            memcmp(old_value, now_value, old.length) != 0)
            return false;
    }
    return !next_kept(options, length, &second, &now, &now_value);
}

int lm_compare_in_repair(struct lm_described *those, size_t count, const char *usual, size_t usual_length) {
    enum { LARGEST = 60000 };
    FREED_AT_END char *room = malloc(LARGEST);

    if (!room)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct lm_described *one = &those[i];
        long length = lm_read_socket_options(one->number, usual, usual_length, NULL, 0, room, LARGEST);

        if (length < 0)
            return (int)length;
        one->changed = !is_same_in_repair(one->options, one->length, room, (size_t)length);
    }
    return 0;
}

/* The number that the interface which a record names has here. -ENODEV: there is none. */
static int number_here(int socket, const char *value, size_t length, struct interface *interface) {
    struct ifreq request = {0};

    if (length != sizeof(*interface))
        return -EPROTO;
    memcpy(interface, value, sizeof(*interface));
    memcpy(request.ifr_name, interface->name, IFNAMSIZ - 1);
    return ioctl(socket, SIOCGIFINDEX, &request) == 0 ? request.ifr_ifindex : -errno;
}

static int set(int socket, int level, int number, const void *value, size_t length) {
    return setsockopt(socket, level, number, value, (socklen_t)length) == 0 ? 0 : -errno;
}

/* The kernel doubles a size when it is set (socket(7)). Without CAP_NET_ADMIN it becomes as large as net.core.rmem_max
 * or wmem_max allows. */
static int set_size(int socket, int number, const char *value) {
    int size, forced = number == SO_SNDBUF ? SO_SNDBUFFORCE : SO_RCVBUFFORCE, result;

    memcpy(&size, value, sizeof(size));
    size /= 2;
    result = set(socket, SOL_SOCKET, forced, &size, sizeof(size));
    return result == -EPERM ? set(socket, SOL_SOCKET, number, &size, sizeof(size)) : result;
}

static int set_group(int socket, int level, const char *value, size_t length, int interface) {
    FREED_AT_END struct group_filter *filter = malloc(length);
    struct group_req request;
    int result;

    if (!filter)
        return -ENOMEM;
    memcpy(filter, value, length);
    if (length < GROUP_FILTER_SIZE(0) || filter->gf_numsrc > LARGEST_SOURCES ||
        length != GROUP_FILTER_SIZE(filter->gf_numsrc))
        return -EPROTO;
    request = (struct group_req){.gr_interface = (uint32_t)interface, .gr_group = filter->gf_group};
    result = set(socket, level, MCAST_JOIN_GROUP, &request, sizeof(request));
    if (result < 0 && result != -EADDRINUSE)
        return result;
    filter->gf_interface = (uint32_t)interface;
    if (filter->gf_fmode == MCAST_EXCLUDE && filter->gf_numsrc == 0 && result == 0)
        return 0;
    return set(socket, level, MCAST_MSFILTER, filter, length);
}

static int set_filter(int socket, const char *value, size_t length) {
    FREED_AT_END struct sock_filter *instructions = malloc(length ? length : 1);
    struct sock_fprog program = {.len = (unsigned short)(length / sizeof(*instructions)),
                                 .filter = instructions};

    if (!instructions)
        return -ENOMEM;
    memcpy(instructions, value, length);
    return set(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
}

static bool is_unknown(int socket, const struct lm_option *option) {
    char present[4096];
    socklen_t found = sizeof(present);

    return getsockopt(socket, option->level, option->number, present, &found) != 0 &&
           (errno == ENOPROTOOPT || errno == EOPNOTSUPP || errno == EINVAL);
}

static bool is_present(int socket, const struct lm_option *option, const char *value, size_t length) {
    char present[4096];
    socklen_t found = sizeof(present);

    if (getsockopt(socket, option->level, option->number, present, &found) != 0)
        return false;
    return found == length && memcmp(present, value, length) == 0;
}

static int set_option(int socket, const struct lm_option *option, const char *value, size_t length,
                      const struct interface *interface, int here) {
    uint32_t number;

    if (option->number == SO_ATTACH_FILTER && option->level == SOL_SOCKET)
        return set_filter(socket, value, length);
    if (option->treatment == LM_SPECIAL)
        return here < 0 ? here : set_group(socket, option->level, value, length, here);
    if (option->treatment == LM_INTERFACE || option->treatment == LM_INTERFACE_IN_NETWORK_ORDER) {
        if (length != sizeof(number))
            return -EPROTO;
        number = interface_in(option, value);
        if (number && (here < 0 || number != interface->number))
            return here < 0 ? here : -ENODEV;
        number = number ? (uint32_t)here : 0;
        if (option->treatment == LM_INTERFACE_IN_NETWORK_ORDER)
            number = htonl(number);
        value = (const char *)&number;
    }
    if (is_present(socket, option, value, length))
        return 0;
    if (option->treatment == LM_SIZE)
        return length == sizeof(int) ? set_size(socket, option->number, value) : -EPROTO;
    int result = set(socket, option->level, option->number, value, length);

    return result == -EINVAL && option->treatment == LM_KEPT_IF_TAKEN ? 0 : result;
}

static bool is_filter(const struct lm_option *option) {
    return option->level == SOL_SOCKET &&
           (option->number == SO_ATTACH_FILTER || option->number == SO_LOCK_FILTER);
}

/* Is there a record for the same thing, the same group for example? */
static bool is_among(const char *options, size_t length, const struct record *wanted, const char *of) {
    struct record record;
    const char *value;

    for (size_t at = 0; next(options, length, &at, &record, &value);)
        if (record.level == wanted->level && record.number == wanted->number &&
            (record.number != MCAST_MSFILTER ||
             (record.length >= GROUP_FILTER_SIZE(0) && wanted->length >= GROUP_FILTER_SIZE(0) &&
              memcmp(value, of, offsetof(struct group_filter, gf_fmode)) == 0)))
            return true;
    return false;
}

static int take_back(int socket, const struct record *record, const char *value, int here) {
    struct group_req request = {.gr_interface = (uint32_t)here};
    int none = 0;

    if (record->level == SOL_SOCKET)
        return set(socket, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof(none));
    if (here < 0 || record->length < GROUP_FILTER_SIZE(0))
        return here < 0 ? here : -EPROTO;
    memcpy(&request.gr_group, value + offsetof(struct group_filter, gf_group), sizeof(request.gr_group));
    return set(socket, record->level, MCAST_LEAVE_GROUP, &request, sizeof(request));
}

static int take_back_all(int socket, const char *before, size_t before_length, const char *options,
                         size_t length, int filters, const char **failed) {
    struct interface interface = {0};
    struct record record;
    const char *value;
    int here = -ENODEV, result;
    bool usual;

    for (size_t at = 0; next(before, before_length, &at, &record, &value);) {
        const struct lm_option *option = option_of(&record, &usual);

        if (record.level == LEVEL_OF_INTERFACES)
            here = number_here(socket, value, record.length, &interface);
        if (!option || option->treatment != LM_SPECIAL || is_filter(option) != !!filters ||
            is_among(options, length, &record, value))
            continue;
        *failed = option->name;
        result = take_back(socket, &record, value, here);
        if (result < 0)
            return result;
    }
    return 0;
}

int lm_set_socket_options(int socket, const char *before, size_t before_length, const char *options,
                          size_t length, int filters, const char **failed) {
    struct interface interface = {0};
    struct record record;
    const char *value;
    int here = -ENODEV;
    bool usual;
    size_t at = 0;
    int result = take_back_all(socket, before, before_length, options, length, filters, failed);

    while (result == 0 && next(options, length, &at, &record, &value)) {
        const struct lm_option *option = option_of(&record, &usual);

        if (record.level == LEVEL_OF_INTERFACES) {
            here = number_here(socket, value, record.length, &interface);
            continue;
        }
        if (!option)
            return -EPROTO;
        if (option->treatment == LM_REFUSED || is_filter(option) != !!filters ||
            (usual && is_unknown(socket, option)))
            continue;
        *failed = option->name;
        result = set_option(socket, option, value, record.length, &interface, here);
    }
    return result == 0 && at != length ? -EPROTO : result;
}
