/* The handshake of a userfaultfd (ioctl_userfaultfd(2), UFFDIO_API); what the pager does with one is
 * pager/userfault.h. */
#ifndef LM_KERNEL_USERFAULTFD_H
#define LM_KERNEL_USERFAULTFD_H

#include <stdint.h>

/* cffi: begin */
/* USERFAULTFD_IOC_NEW: the request by which /dev/userfaultfd makes one. */
#define LM_USERFAULTFD_NEW 0xaa00

/* Request faults on missing pages of anonymous and of shared memory, and every event of the address space. 0 or
 * -errno: -EINVAL when the kernel lacks one of these, -EPERM when the events need CAP_SYS_PTRACE. */
int lm_userfaultfd_handshake(int userfaultfd);
/* cffi: end */

#endif
