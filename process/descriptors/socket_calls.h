#ifndef LM_PROCESS_SOCKET_CALLS_H
#define LM_PROCESS_SOCKET_CALLS_H
/* What the kernel tells about sockets beyond getsockopt(2). Every function returns its result or -errno. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* cffi: begin */
struct lm_unix_socket {
    unsigned int peer;    /* inode of the other end; 0: none, closed, or not accepted yet */
    unsigned int queued;  /* bytes to be read; a listener's: connections that wait to be accepted */
    unsigned int backlog; /* a listener's: how many may wait */
    int has_peer;         /* is there another end, also one without an inode? */
    int shutdown;         /* bit 0: no more to receive, bit 1: no more to send */
    int state;            /* 1 connected, 7 not, 10 listening (the numbers of TCP) */
};
struct lm_tcp_state {
    int state;            /* enum of netinet/tcp.h: TCP_ESTABLISHED is 1, TCP_CLOSE 7, TCP_LISTEN 10 */
    unsigned int waiting; /* a listener's: connections that wait to be accepted */
    unsigned int backlog; /* a listener's: how many may wait */
    int ended;            /* LM_TCP_HAS_...: of a socket without a connection that had one; 0: it had none */
};
#define LM_TCP_HAS_ENDED 1  /* reading gives the end, and writing EPIPE */
#define LM_TCP_HAS_UNREAD 2 /* there are bytes to be read before, or an error that nobody was told */
/* `diag` queries a network namespace about its sockets (sock_diag(7)). ENOENT: there is no unix socket with that inode in that network namespace. */
int lm_diag_unix(int diag, unsigned int inode, struct lm_unix_socket *socket);
int lm_tcp_state(int number, struct lm_tcp_state *state);
/* The name (IFNAMSIZ bytes) of an interface by its number, as a socket's network namespace has it. */
int lm_interface_name(int number, unsigned int interface, char *name);
/* The bytes of a datagram socket that are on their way out, or half written (UDP_CORK, MSG_MORE). */
int lm_unsent(int number);
/* A TCP socket whose peer has closed and whose own direction is shut: reading gives the end, writing EPIPE.
 * Made in a network namespace that nobody else sees, so it holds no port. Needs CAP_SYS_ADMIN. */
int lm_closed_tcp_socket(int family);
/* cffi: end */

#if 0
/* cffi: begin */
#define SO_PEEK_OFF ...
/* cffi: end */
#endif
#endif
