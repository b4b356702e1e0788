#ifndef LM_KERNEL_NETLINK_H
#define LM_KERNEL_NETLINK_H

/* cffi: begin */
/* A netlink(7) socket of this protocol in a network namespace, given by a descriptor of its /proc/PID/ns/net; -1: the
 * caller's own. The caller stays where it is. The socket or -errno. */
int lm_netlink_open(int network, int protocol);
/* cffi: end */

#endif
