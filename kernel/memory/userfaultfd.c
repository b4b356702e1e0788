#include "kernel/memory/userfaultfd.h"

#include "kernel/kernel.h"

#include <errno.h>
#include <sys/ioctl.h>

_Static_assert(LM_USERFAULTFD_NEW == USERFAULTFD_IOC_NEW, "USERFAULTFD_IOC_NEW");

int lm_userfaultfd_handshake(int userfaultfd) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                    UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_MISSING_SHMEM,
    };

    return ioctl(userfaultfd, UFFDIO_API, &api) == 0 ? 0 : -errno;
}
