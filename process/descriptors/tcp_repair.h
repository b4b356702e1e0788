#ifndef LM_PROCESS_TCP_REPAIR_H
#define LM_PROCESS_TCP_REPAIR_H
/*
 * An established TCP connection, taken from a socket and given to another one, by TCP_REPAIR of the kernel.
 *
 * A FIN takes a number of its sequence. One that was received is not received a second time: the other socket begins
 * one number later, and its end is set by shutdown(2). One that was sent is sent again by shutdown(2), with the same number.
 */
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>

/* cffi: begin */
struct lm_tcp_connection {
    uint32_t state;            /* enum of netinet/tcp.h */
    uint32_t send_sequence;    /* after the last byte that was written, and after a FIN */
    uint32_t receive_sequence; /* after the last byte that has come, and after a FIN */
    uint32_t outgoing;         /* bytes to be sent or not acknowledged, with a FIN */
    uint32_t unsent;           /* those that were never sent, with a FIN */
    uint32_t incoming;         /* bytes that have come and were not read */
    uint32_t segment;          /* the largest that the peer takes */
    uint32_t options;          /* TCPI_OPT_... of netinet/tcp.h */
    uint32_t send_scale;
    uint32_t receive_scale;
    uint32_t timestamp;
    uint32_t send_buffer; /* as getsockopt(2) gives them */
    uint32_t receive_buffer;
    uint32_t window_clamp;
    uint32_t reads_no_more; /* 1: reading gives the end: the peer has closed, or the process has shut it */
    uint32_t window[5];     /* struct tcp_repair_window */
};

/* The bytes of a connection that were written and not acknowledged, sent or not, and those that were not read. */
struct lm_tcp_bytes {
    const char *written;
    unsigned long written_length;
    const char *unread;
    unsigned long unread_length;
};

/* The options of a socket that its repair changes, or that would end a connection of which nothing gets through. */
struct lm_tcp_options {
    int32_t reuse; /* SO_REUSEADDR */
    int32_t in_line;
    int32_t keepalive;
    int32_t user_timeout;
};

/* 0 or -errno. */
int lm_tcp_options(int number, struct lm_tcp_options *options);
/* Begin repair: from here on closing the socket sends nothing, and it does not end by itself. Then read the connection. 0
 * or -errno. */
int lm_tcp_look(int number, struct lm_tcp_connection *connection);
/* Read the bytes that it has, without taking them: the received ones into `incoming`, of which there must be
 * connection->incoming, the others into `outgoing`, which has room for connection->outgoing. Returns how many
 * the others are, or -errno; -ESTALE if they are not what was to be expected. */
long lm_tcp_read(int number, const struct lm_tcp_connection *connection, char *incoming, char *outgoing);
/* Begin repair of a socket that is to be a connection. 0 or -errno. */
int lm_tcp_begin_repair(int number);
/* Make of a bound socket in repair, which may have any address (IP_TRANSPARENT), the connection to `peer` (a socket
 * address), and then leave it so or not (`transparent`). It stays in repair: nothing is sent. Returns how many of the
 * written bytes it has, which are those that were sent, or -errno. */
long lm_tcp_restore(int number, const struct lm_tcp_connection *connection, const char *peer,
                    unsigned int peer_length, const struct lm_tcp_bytes *bytes, int transparent);
/* Had the process shut its direction? */
int lm_tcp_has_sent_fin(const struct lm_tcp_connection *connection);
/* How many bytes have been written to it since it was made, modulo 2 to the 32nd, or -errno. */
long lm_tcp_written(int number);
/* Has a connection or a listener keys of TCP-AO? */
int lm_tcp_has_keys(int number);
/* What a connection has that does not move: LM_TCP_..., 0 for nothing, or -errno. */
#define LM_TCP_URGENT 1 /* an urgent byte, or the mark that it has left */
#define LM_TCP_ERROR 2  /* an error or report that was not read */
#define LM_TCP_SIGNED 3 /* keys of TCP-AO */
int lm_tcp_extra(int number);
/* cffi: end */

#if 0
/* cffi: begin */
#define TCP_REPAIR ...
#define TCP_REPAIR_OFF ...
#define TCP_REPAIR_OFF_NO_WP ...
#define SO_BUF_LOCK ...
#define SO_SNDBUFFORCE ...
#define TCP_USER_TIMEOUT ...
#define SIOCGSKNS ...
/* cffi: end */
#endif
#endif
