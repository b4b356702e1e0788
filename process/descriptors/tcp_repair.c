#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "process/descriptors/tcp_repair.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#ifndef SO_BUF_LOCK /* Linux 5.14 */
#define SO_BUF_LOCK 72
#endif

#ifndef TCP_AO_INFO /* Linux 6.7 */
#define TCP_AO_INFO 40
#endif

/* Nothing larger is put into a queue at once: the kernel wants the memory in one piece. */
enum { PIECE = 32 << 10, ROOM = 1 << 20 };

static int set(int number, int level, int option, int value) {
    return setsockopt(number, level, option, &value, sizeof(value)) == 0 ? 0 : -errno;
}

static int get(int number, int level, int option, int *value) {
    socklen_t length = sizeof(*value);

    return getsockopt(number, level, option, value, &length) == 0 ? 0 : -errno;
}

static int count(int number, unsigned long what, uint32_t *found) {
    int value = 0;

    if (ioctl(number, what, &value) != 0)
        return -errno;
    *found = (uint32_t)value;
    return 0;
}

static int sequence(int number, int queue, uint32_t *found) {
    int value = 0;
    int error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);

    if (error == 0)
        error = get(number, IPPROTO_TCP, TCP_QUEUE_SEQ, &value);
    *found = (uint32_t)value;
    return error;
}

static int set_sequence(int number, int queue, uint32_t value) {
    int error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);

    return error ? error : set(number, IPPROTO_TCP, TCP_QUEUE_SEQ, (int)value);
}

int lm_tcp_begin_repair(int number) {
    return set(number, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON);
}

int lm_tcp_options(int number, struct lm_tcp_options *options) {
    int error;

    if ((error = get(number, SOL_SOCKET, SO_REUSEADDR, &options->reuse)) != 0 ||
        (error = get(number, SOL_SOCKET, SO_OOBINLINE, &options->in_line)) != 0 ||
        (error = get(number, SOL_SOCKET, SO_KEEPALIVE, &options->keepalive)) != 0)
        return error;
    return get(number, IPPROTO_TCP, TCP_USER_TIMEOUT, &options->user_timeout);
}

/* While nothing gets through, neither of these may end the connection. */
static int calm(int number) {
    int error = set(number, SOL_SOCKET, SO_KEEPALIVE, 0);

    return error ? error : set(number, IPPROTO_TCP, TCP_USER_TIMEOUT, 0);
}

int lm_tcp_look(int number, struct lm_tcp_connection *connection) {
    struct tcp_info info = {0};
    struct tcp_repair_window window = {0};
    struct pollfd polled = {.fd = number, .events = POLLRDHUP};
    socklen_t length = sizeof(info), window_length = sizeof(window);
    int value = 0, error;

    if ((error = calm(number)) != 0 || (error = lm_tcp_begin_repair(number)) != 0)
        return error;
    if (getsockopt(number, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 ||
        getsockopt(number, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &window_length) != 0)
        return -errno;
    if (poll(&polled, 1, 0) < 0)
        return -errno;
    connection->reads_no_more = (polled.revents & POLLRDHUP) != 0;
    connection->state = info.tcpi_state;
    connection->options = info.tcpi_options;
    connection->send_scale = info.tcpi_snd_wscale;
    connection->receive_scale = info.tcpi_rcv_wscale;
    _Static_assert(sizeof(window) == sizeof(connection->window), "the window travels as it is");
    memcpy(connection->window, &window, sizeof(window));
    if ((error = get(number, IPPROTO_TCP, TCP_MAXSEG, (int *)&connection->segment)) != 0 ||
        (error = get(number, IPPROTO_TCP, TCP_WINDOW_CLAMP, (int *)&connection->window_clamp)) != 0 ||
        (error = get(number, SOL_SOCKET, SO_SNDBUF, (int *)&connection->send_buffer)) != 0 ||
        (error = get(number, SOL_SOCKET, SO_RCVBUF, (int *)&connection->receive_buffer)) != 0)
        return error;
    if (info.tcpi_options & TCPI_OPT_TIMESTAMPS) {
        if ((error = get(number, IPPROTO_TCP, TCP_TIMESTAMP, &value)) != 0)
            return error;
        connection->timestamp = (uint32_t)value;
    }
    if ((error = sequence(number, TCP_SEND_QUEUE, &connection->send_sequence)) != 0 ||
        (error = sequence(number, TCP_RECV_QUEUE, &connection->receive_sequence)) != 0 ||
        (error = count(number, SIOCOUTQ, &connection->outgoing)) != 0 ||
        (error = count(number, SIOCOUTQNSD, &connection->unsent)) != 0)
        return error;
    return count(number, SIOCINQ, &connection->incoming);
}

/* What a queue has, at most `size` bytes; returns how many, or -errno. */
static long peek(int number, int queue, char *room, size_t size) {
    int error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);
    ssize_t length = 0;

    if (error != 0 || size == 0)
        return error;
    length = recv(number, room, size, MSG_PEEK | MSG_DONTWAIT);
    if (length < 0)
        return errno == EAGAIN ? 0 : -errno;
    return length;
}

static long read_queues(int number, const struct lm_tcp_connection *connection, char *incoming,
                        char *outgoing) {
    long length = peek(number, TCP_RECV_QUEUE, incoming, connection->incoming);

    if (length < 0)
        return length;
    if ((uint32_t)length != connection->incoming)
        return -ESTALE;
    length = peek(number, TCP_SEND_QUEUE, outgoing, connection->outgoing);
    if (length < 0)
        return length;
    /* A FIN is counted, and is no byte. */
    return (uint32_t)length + 1 >= connection->outgoing ? length : -ESTALE;
}

long lm_tcp_read(int number, const struct lm_tcp_connection *connection, char *incoming, char *outgoing) {
    int offset = -1;
    long result;

    /* With an offset of its own, peeking would begin there, and move it (SO_PEEK_OFF, socket(7)). */
    if (get(number, SOL_SOCKET, SO_PEEK_OFF, &offset) == 0 && offset >= 0)
        set(number, SOL_SOCKET, SO_PEEK_OFF, -1);
    result = read_queues(number, connection, incoming, outgoing);
    if (offset >= 0)
        set(number, SOL_SOCKET, SO_PEEK_OFF, offset);
    set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE);
    return result;
}

static int set_negotiated(int number, const struct lm_tcp_connection *connection) {
    struct tcp_repair_opt options[4] = {{.opt_code = TCPOPT_MAXSEG, .opt_val = connection->segment}};
    socklen_t length = sizeof(*options);
    size_t used = 1;

    if (connection->options & TCPI_OPT_WSCALE)
        options[used++] =
            (struct tcp_repair_opt){TCPOPT_WINDOW, connection->send_scale | connection->receive_scale << 16};
    if (connection->options & TCPI_OPT_SACK)
        options[used++] = (struct tcp_repair_opt){TCPOPT_SACK_PERMITTED, 0};
    if (connection->options & TCPI_OPT_TIMESTAMPS)
        options[used++] = (struct tcp_repair_opt){TCPOPT_TIMESTAMP, 0};
    length *= (socklen_t)used;
    if (setsockopt(number, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options, length) != 0)
        return -errno;
    if (connection->options & TCPI_OPT_TIMESTAMPS)
        return set(number, IPPROTO_TCP, TCP_TIMESTAMP, (int)connection->timestamp);
    return 0;
}

static int fill(int number, int queue, const char *bytes, unsigned long length) {
    int error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue);

    while (error == 0 && length > 0) {
        ssize_t put = send(number, bytes, length < PIECE ? length : PIECE, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        bytes += put;
        length -= (unsigned long)put;
    }
    return error;
}

/* Give a buffer a size, or one for which nobody has asked: then the kernel may make it larger. It doubles what it
 * is given (socket(7)). */
static int set_size(int number, int option, uint32_t size, int locked) {
    int error = set(number, SOL_SOCKET, option, (int)(size / 2));

    return error ? error : set(number, SOL_SOCKET, SO_BUF_LOCK, locked);
}

/* Fill a queue, whose buffer is larger meanwhile. */
static int fill_with_room(int number, int queue, const char *bytes, unsigned long length, uint32_t size) {
    const int option = queue == TCP_SEND_QUEUE ? SO_SNDBUFFORCE : SO_RCVBUFFORCE;
    int locked = 0, error, filled = 0;

    if ((error = get(number, SOL_SOCKET, SO_BUF_LOCK, &locked)) != 0)
        return error;
    if (length > 0) {
        if (length > INT32_MAX / 8)
            return -EMSGSIZE;
        if ((error = set(number, SOL_SOCKET, option, (int)length * 4 + ROOM)) != 0)
            return error;
        filled = fill(number, queue, bytes, length);
    }
    error = set_size(number, option, size, locked);
    return filled ? filled : error;
}

int lm_tcp_has_sent_fin(const struct lm_tcp_connection *connection) {
    return connection->state == TCP_FIN_WAIT1 || connection->state == TCP_FIN_WAIT2 ||
           connection->state == TCP_LAST_ACK || connection->state == TCP_CLOSING;
}

/* How many of the written bytes were sent. A FIN is counted among what was not, where it was not. */
static unsigned long in_flight(const struct lm_tcp_connection *connection, unsigned long written) {
    uint32_t unsent = connection->unsent;

    if (unsent != 0 && lm_tcp_has_sent_fin(connection))
        unsent--;
    return unsent < written ? written - unsent : 0;
}

long lm_tcp_restore(int number, const struct lm_tcp_connection *connection, const char *peer,
                    unsigned int peer_length, const struct lm_tcp_bytes *bytes, int transparent) {
    const uint32_t fin = lm_tcp_has_sent_fin(connection) ? 1 : 0;
    const uint32_t first = connection->send_sequence - fin - (uint32_t)bytes->written_length;
    const uint32_t received = connection->receive_sequence - (uint32_t)bytes->unread_length;
    const unsigned long sent = in_flight(connection, bytes->written_length);
    int error;

    if ((error = calm(number)) != 0 || (error = set_sequence(number, TCP_SEND_QUEUE, first)) != 0 ||
        (error = set_sequence(number, TCP_RECV_QUEUE, received)) != 0 ||
        (error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE)) != 0)
        return error;
    if (connect(number, (const struct sockaddr *)peer, peer_length) != 0)
        return -errno;
    if ((error = set(number, IPPROTO_IP, IP_TRANSPARENT, transparent)) != 0 ||
        (error = set_negotiated(number, connection)) != 0 ||
        (error = fill_with_room(number, TCP_RECV_QUEUE, bytes->unread, bytes->unread_length,
                                connection->receive_buffer)) != 0 ||
        (error = fill_with_room(number, TCP_SEND_QUEUE, bytes->written, sent, connection->send_buffer)) !=
            0 ||
        (error = set(number, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE)) != 0)
        return error;
    /* It is a help: where it is less than this kernel wants, it is larger. */
    set(number, IPPROTO_TCP, TCP_WINDOW_CLAMP, (int)connection->window_clamp);
    if (setsockopt(number, IPPROTO_TCP, TCP_REPAIR_WINDOW, connection->window, sizeof(connection->window)) !=
        0)
        return -errno;
    return (long)sent;
}

long lm_tcp_written(int number) {
    struct tcp_info_head {
        char before[120];
        uint64_t acknowledged; /* tcpi_bytes_acked of linux/tcp.h, which the C library's header lacks */
    } info = {0};
    socklen_t length = sizeof(info);
    uint32_t queued = 0;
    int error = count(number, SIOCOUTQ, &queued);

    if (error != 0)
        return error;
    if (getsockopt(number, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
        return -errno;
    return length == sizeof(info) ? (long)(uint32_t)(info.acknowledged + queued) : -ENODATA;
}

/* Is there an urgent byte among those that were not read? Also one that was read out of turn stays there, as a mark at which
 * reading stops. Where it is, only the two ways of counting tell: up to it, and all. */
static int has_mark(int number) {
    uint32_t first = 0, second = 0;
    int marked = 0, in_line = 0;
    int error = count(number, SIOCINQ, &first);

    if (error == 0 && ioctl(number, SIOCATMARK, &marked) == 0 && marked)
        return 1;
    if (error != 0 || first == 0)
        return error;
    if ((error = get(number, SOL_SOCKET, SO_OOBINLINE, &in_line)) != 0 ||
        (error = set(number, SOL_SOCKET, SO_OOBINLINE, !in_line)) != 0)
        return error;
    error = count(number, SIOCINQ, &second);
    if (error == 0)
        error = set(number, SOL_SOCKET, SO_OOBINLINE, in_line);
    return error ? error : first != second;
}

int lm_tcp_has_keys(int number) {
    /* The kernel refuses to answer where something of it is set. */
    char keys[256] = {0};
    socklen_t length = sizeof(keys);

    return getsockopt(number, IPPROTO_TCP, TCP_AO_INFO, keys, &length) == 0;
}

int lm_tcp_extra(int number) {
    struct pollfd polled = {.fd = number, .events = POLLPRI};
    int marked;

    if (lm_tcp_has_keys(number))
        return LM_TCP_SIGNED;
    if (poll(&polled, 1, 0) < 0)
        return -errno;
    if (polled.revents & POLLERR)
        return LM_TCP_ERROR;
    if ((marked = has_mark(number)) < 0)
        return marked;
    return polled.revents & POLLPRI || marked ? LM_TCP_URGENT : 0;
}
