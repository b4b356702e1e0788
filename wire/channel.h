/*
 * A channel: every byte of a page stream passes here, above an already connected and authenticated stream socket, and
 * under records (wire/records.h), which take the place of TLS when its handshake is done.
 *
 * Nothing above it knows what carries the bytes: with no TLS session, for experiments on one machine and in tests, that
 * is the socket itself. `lm_channel_pending` tells of bytes that the records hold and poll(2) does not show, and the
 * descriptor is only for waiting. Loops for partial reads and writes are here and nowhere else.
 *
 * One thread may read while another writes; two readers or two writers need a lock of their own.
 */
#ifndef LM_WIRE_CHANNEL_H
#define LM_WIRE_CHANNEL_H

#include "wire/records.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* cffi: begin */
#define LM_ROLE_CONTROL 1
#define LM_ROLE_FAULT 2
#define LM_ROLE_BULK 3

/* What a channel is made of: a connected socket, and the TLS session on it, or NULL. Both stay the caller's, but the
 * session gives no more. */
struct lm_link {
    int fd;
    struct lm_tls *tls;
};
/* cffi: end */

struct lm_channel {
    int fd;              /* a duplicate of our own; -1 when there is none */
    uint32_t role;       /* LM_ROLE_... */
    uint32_t attempt;    /* 1 for the first connection of the session, counted up by each reconnection */
    uint8_t session[16]; /* both ends' name of the migration */
    struct lm_records *records; /* NULL when there is no TLS */
    uint32_t piece;    /* bytes that the link may carry without a pause; 0 for as many as there are */
    uint64_t received; /* bytes read so far */
    uint64_t sent;     /* bytes written so far */
    uint64_t
        waited_ns; /* time that writers spent waiting for room: the link, not the processor, is the limit */
};

/* Take a duplicate of the link's socket, made blocking, with the options its role wants (no delay, keep-alive, priority
 * before bulk), and go on where its TLS session stops, which it does once. Returns 0 or -errno. */
int lm_channel_init(struct lm_channel *channel, const struct lm_link *link, uint32_t role,
                    const uint8_t session[16], uint32_t attempt);
void lm_channel_deinit(struct lm_channel *channel);

/* The descriptor to wait on with poll(2). */
int lm_channel_descriptor(const struct lm_channel *channel);

/* Read the bytes that are there, at most `size`; `wait` says whether to wait for the first. Returns the number of
 * bytes, -EAGAIN when there is nothing and `wait` is false, -EPIPE when the peer has closed, -EBADMSG when it was changed on
 * its way, or -errno. */
ssize_t lm_channel_read(struct lm_channel *channel, void *buffer, size_t size, bool wait);

/* Wait until there is something to read, for at most that time: 0, -EAGAIN when there is not, or -errno. */
int lm_channel_wait(struct lm_channel *channel, int timeout_ms);

/* Read exactly `size` bytes. Returns 0, -EPIPE when the peer closed before the end, or -errno. */
int lm_channel_read_exact(struct lm_channel *channel, void *buffer, size_t size);

/* Write everything, waiting as long as it takes; the vector is changed. Returns 0 or -errno, -EPIPE when the
 * peer is gone. */
int lm_channel_writev(struct lm_channel *channel, struct iovec *parts, int count);
int lm_channel_write(struct lm_channel *channel, const void *buffer, size_t size);

/* Whether a read would return something without waiting that poll(2) does not show. */
bool lm_channel_pending(const struct lm_channel *channel);

/* Bytes written that the transport has not sent yet, 0 if it cannot tell (SIOCOUTQNSD of
 * linux/sockios.h). */
size_t lm_channel_unsent(const struct lm_channel *channel);

/* An error of the above in words, but for the end of the connection (-EPIPE). */
const char *lm_channel_cause(int error);

/* End the connection in both directions: a read or write that waits on it, in any thread, returns an error. */
void lm_channel_shutdown(struct lm_channel *channel);

#endif
