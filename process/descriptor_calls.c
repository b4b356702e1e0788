#include "process/descriptor_calls.h"

#include <errno.h>
#include <unistd.h>

static int result_or_errno(long result) {
    return result < 0 ? -errno : (int)result;
}

long lm_tee(int from, int to, unsigned long length) {
    long copied = tee(from, to, length, SPLICE_F_NONBLOCK);

    return copied < 0 ? -errno : copied;
}

int lm_get_owner(int number, int *type, int *id, int *signal) {
    struct f_owner_ex owner;

    if (fcntl(number, F_GETOWN_EX, &owner) < 0)
        return -errno;
    *type = owner.type;
    *id = owner.pid;
    *signal = fcntl(number, F_GETSIG);
    return result_or_errno(*signal < 0 ? -1 : 0);
}
