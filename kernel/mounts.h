#ifndef LM_KERNEL_MOUNTS_H
#define LM_KERNEL_MOUNTS_H

/* A mount namespace of our own. Every function returns 0 or -errno. */

/* cffi: begin */
/* unshare(2): from here on what we mount is seen by us and our children alone. What the host mounts and
 * unmounts later is still seen (mount_namespaces(7), MS_SLAVE). */
int lm_own_mounts(void);
/* Show `from`, and what is mounted below it, at `to`, which has to be there. */
int lm_bind(const char *from, const char *to);
/* The root directory is `path` from here on, which has to be a mount (pivot_root(2)). */
int lm_new_root(const char *path);
/* See what the process that a pidfd stands for sees, but for /proc, which is that of our PID namespace. */
int lm_join_mounts(int pidfd);
/* cffi: end */

#endif
