#include "wire/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Options are parameters: a unix socket pair has none of them (socket(7), tcp(7)). A dead link is noticed after
 * about twenty seconds of silence. */
static void set_options(int fd, uint32_t role) {
    int one = 1, priority = role == LM_ROLE_BULK ? 2 : 6, idle = 5, interval = 5, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

int lm_channel_init(struct lm_channel *channel, const struct lm_link *link, uint32_t role,
                    const uint8_t session[16], uint32_t attempt) {
    memset(channel, 0, sizeof *channel);
    channel->fd = -1;
    int own = fcntl(link->fd, F_DUPFD_CLOEXEC, 3);
    if (own < 0)
        return -errno;
    int flags = fcntl(own, F_GETFL);
    if (flags < 0 || fcntl(own, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        int error = errno;
        close(own);
        return -error;
    }
    int error = link->tls ? lm_records_create(link->tls, &channel->records) : 0;
    if (error) {
        close(own);
        return error;
    }
    set_options(own, role);
    channel->fd = own;
    channel->role = role;
    channel->attempt = attempt;
    if (session)
        memcpy(channel->session, session, sizeof channel->session);
    return 0;
}

void lm_channel_deinit(struct lm_channel *channel) {
    if (channel->fd >= 0)
        close(channel->fd);
    channel->fd = -1;
    lm_records_destroy(channel->records);
    channel->records = NULL;
}

int lm_channel_descriptor(const struct lm_channel *channel) {
    return channel->fd;
}

static ssize_t take_in(struct lm_channel *channel, void *buffer, size_t size, bool wait) {
    ssize_t count = recv(channel->fd, buffer, size, wait ? 0 : MSG_DONTWAIT);
    return count > 0 ? count : count == 0 ? -EPIPE : -errno;
}

static ssize_t read_record(struct lm_channel *channel, void *buffer, size_t size, bool wait) {
    for (;;) {
        ssize_t count = lm_records_open(channel->records, buffer, size);
        if (count != -EAGAIN)
            return count;
        size_t most;
        void *room = lm_records_room(channel->records, size, &most);
        count = take_in(channel, room, most, wait);
        if (count < 0)
            return count;
        lm_records_filled(channel->records, (size_t)count);
    }
}

ssize_t lm_channel_read(struct lm_channel *channel, void *buffer, size_t size, bool wait) {
    ssize_t count;
    do
        count = channel->records ? read_record(channel, buffer, size, wait)
                                 : take_in(channel, buffer, size, wait);
    while (count == -EINTR);
    if (count > 0)
        channel->received += (uint64_t)count;
    return count;
}

int lm_channel_wait(struct lm_channel *channel, int timeout_ms) {
    struct pollfd bytes = {.fd = channel->fd, .events = POLLIN};
    if (lm_channel_pending(channel))
        return 0;
    int ready = poll(&bytes, 1, timeout_ms);
    return ready > 0 ? 0 : ready == 0 || errno == EINTR ? -EAGAIN : -errno;
}

int lm_channel_read_exact(struct lm_channel *channel, void *buffer, size_t size) {
    char *at = buffer;
    while (size) {
        ssize_t count = lm_channel_read(channel, at, size, true);
        if (count < 0)
            return (int)count;
        at += count;
        size -= (size_t)count;
    }
    return 0;
}

/* Wait until the transport takes more, and keep account of how long that took. */
static int wait_for_room(struct lm_channel *channel) {
    struct pollfd room = {.fd = channel->fd, .events = POLLOUT};
    uint64_t begin = now_ns();
    int ready = poll(&room, 1, -1);
    channel->waited_ns += now_ns() - begin;
    return ready < 0 && errno != EINTR ? -errno : 0;
}

/* Send what the socket takes of the vector, or of its first piece: the kernel pauses between what it sends at
 * once, and does not put together what ends with MSG_EOR and what follows. */
static ssize_t send_some(const struct lm_channel *channel, struct iovec *parts, int count) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    if (!channel->piece)
        return sendmsg(channel->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    size_t left = channel->piece;
    int whole = 0;
    while (whole < count && parts[whole].iov_len <= left)
        left -= parts[whole++].iov_len;
    if (whole == count)
        return sendmsg(channel->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR);
    size_t cut = parts[whole].iov_len;
    parts[whole].iov_len = left;
    message.msg_iovlen = (size_t)(left ? whole + 1 : whole);
    ssize_t done = sendmsg(channel->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR);
    parts[whole].iov_len = cut;
    return done;
}

static int write_socket(struct lm_channel *channel, struct iovec *parts, int count) {
    for (lm_vector_advance(&parts, &count, 0); count;) {
        ssize_t done = send_some(channel, parts, count);
        int error = done < 0 && errno != EINTR ? -errno : 0;
        if (error == -EAGAIN)
            error = wait_for_room(channel);
        if (error)
            return error;
        if (done > 0) {
            channel->sent += (uint64_t)done;
            lm_vector_advance(&parts, &count, (size_t)done);
        }
    }
    return 0;
}

/* As much as fits into the records' room is sealed before any of it is sent: a page and the header before it are one
 * record, and few calls of the kernel carry many of them. */
static int write_records(struct lm_channel *channel, struct iovec *parts, int count) {
    for (;;) {
        size_t size;
        int error = lm_records_seal(channel->records, &parts, &count);
        if (error)
            return error;
        struct iovec sealed = {.iov_base = (void *)lm_records_sealed(channel->records, &size)};
        sealed.iov_len = size;
        if (!size)
            return 0;
        error = write_socket(channel, &sealed, 1);
        if (error)
            return error;
        lm_records_sent(channel->records, size);
    }
}

int lm_channel_writev(struct lm_channel *channel, struct iovec *parts, int count) {
    return channel->records ? write_records(channel, parts, count) : write_socket(channel, parts, count);
}

int lm_channel_write(struct lm_channel *channel, const void *buffer, size_t size) {
    struct iovec part = {.iov_base = (void *)buffer, .iov_len = size};
    return lm_channel_writev(channel, &part, 1);
}

bool lm_channel_pending(const struct lm_channel *channel) {
    return channel->records && lm_records_ready(channel->records);
}

size_t lm_channel_unsent(const struct lm_channel *channel) {
    int unsent = 0;
    return ioctl(channel->fd, SIOCOUTQNSD, &unsent) < 0 ? 0 : (size_t)unsent;
}

const char *lm_channel_cause(int error) {
    return error == -EBADMSG ? "what came was changed on its way" : strerror(-error);
}

void lm_channel_shutdown(struct lm_channel *channel) {
    if (channel->fd >= 0)
        shutdown(channel->fd, SHUT_RDWR);
}
