#ifndef LM_PROCESS_SOCKET_OPTION_TABLE_H
#define LM_PROCESS_SOCKET_OPTION_TABLE_H
/* All options that a socket keeps. */
#include <stddef.h>

enum lm_sockets {
    LM_UNIX = 1,
    LM_TCP4 = 2,
    LM_TCP6 = 4,
    LM_UDP4 = 8,
    LM_UDP6 = 16,
    LM_PING4 = 32,
    LM_PING6 = 64,
    LM_LITE = 128,
    LM_NETLINK = 256,
    LM_TCP = LM_TCP4 | LM_TCP6,
    LM_UDP = LM_UDP4 | LM_UDP6,
    LM_DATAGRAM4 = LM_UDP4 | LM_PING4,
    LM_DATAGRAM6 = LM_UDP6 | LM_PING6,
    LM_DATAGRAM = LM_DATAGRAM4 | LM_DATAGRAM6,
    LM_INET6 = LM_TCP6 | LM_DATAGRAM6,
    LM_INET = LM_TCP | LM_DATAGRAM,
    LM_ANY = LM_UNIX | LM_INET | LM_NETLINK,
};

/* Numbers of interfaces differ between hosts, and travel with the name. LM_SPECIAL ones are not what getsockopt(2) gives for their
 * name: filters, and multicast groups. LM_REFUSED cannot be moved if they are set. LM_KEPT_IF_TAKEN
 * show what a connection that has ended was like, where nobody has set them: then it may be no legal value. */
enum lm_treatment {
    LM_KEPT,
    LM_KEPT_IF_TAKEN,
    LM_INTERFACE,
    LM_INTERFACE_IN_NETWORK_ORDER,
    LM_SIZE,
    LM_SPECIAL,
    LM_REFUSED
};

struct lm_option {
    int level;
    int number;
    enum lm_sockets sockets;
    enum lm_treatment treatment;
    const char *name;
};

/* In the order in which they are set. */
extern const struct lm_option lm_options[];
extern const size_t lm_option_count;

#endif
