#ifndef LM_KERNEL_SOCKET_IN_H
#define LM_KERNEL_SOCKET_IN_H

/* cffi: begin */
/* A socket(2) in a network namespace, given by a descriptor of its /proc/PID/ns/net; -1: the
 * caller's own. The caller stays where it is. The socket or -errno. */
int lm_socket_in(int network, int family, int type, int protocol);
/* Let a packet socket, packet(7), receive what arrives of a protocol (ETH_P_IP) on every interface.
 * 0 or -errno. */
int lm_receive_everywhere(int number, int protocol);
/* Let this thread be in a network namespace, given by a descriptor of it. 0 or -errno. */
int lm_enter_network(int network);
/* cffi: end */

#endif
