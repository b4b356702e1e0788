#include "pager/userfault.h"

#include "kernel/kernel.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/ioctl.h>

static struct lm_placed decide(int result, int error, int64_t done, uint64_t length) {
    if (result == 0)
        return (struct lm_placed){.answer = LM_ANSWER_PLACED, .bytes = length};
    /* A short copy is EAGAIN with the number of bytes; an unread event is EAGAIN with -EAGAIN instead of that number.
     */
    if (done > 0)
        return (struct lm_placed){.answer = LM_ANSWER_SHORT, .bytes = (uint64_t)done};
    struct lm_placed placed = {.error = -error};
    switch (error) {
    case EEXIST:
        placed.answer = LM_ANSWER_PRESENT;
        break;
    case EAGAIN:
        placed.answer = LM_ANSWER_RETRY;
        break;
    case ENOENT:
        placed.answer = LM_ANSWER_NOWHERE;
        break;
    case ESRCH:
        placed.answer = LM_ANSWER_GONE;
        break;
    default:
        placed.answer = LM_ANSWER_FAILED;
    }
    return placed;
}

/* Since Linux 6.9 the mapping is looked up before the kernel checks whether mappings are changing, so that a
 * copy that meets an mremap or munmap half way finds no mapping (mm/userfaultfd.c, uffd_mfill_lock). A second call
 * gets EAGAIN until the event has been read; otherwise there is really no mapping. */
static bool query_again(struct lm_placed placed, bool *asked) {
    bool again = placed.answer == LM_ANSWER_NOWHERE && !*asked;
    *asked = true;
    return again;
}

struct lm_placed lm_userfault_copy(int fd, uint64_t address, const void *data, uint64_t length) {
    struct lm_placed placed;
    bool asked = false;
    do {
        struct uffdio_copy copy = {.dst = address, .src = (uint64_t)(uintptr_t)data, .len = length};
        int result = ioctl(fd, UFFDIO_COPY, &copy);
        placed = decide(result, errno, copy.copy, length);
    } while (query_again(placed, &asked));
    return placed;
}

struct lm_placed lm_userfault_zero(int fd, uint64_t address, uint64_t length) {
    struct lm_placed placed;
    bool asked = false;
    do {
        struct uffdio_zeropage zero = {.range = {.start = address, .len = length}};
        int result = ioctl(fd, UFFDIO_ZEROPAGE, &zero);
        placed = decide(result, errno, zero.zeropage, length);
    } while (query_again(placed, &asked));
    return placed;
}

struct lm_placed lm_userfault_poison(int fd, uint64_t address, uint64_t length) {
    struct lm_placed placed;
    bool asked = false;
    do {
        struct uffdio_poison poison = {.range = {.start = address, .len = length}};
        int result = ioctl(fd, UFFDIO_POISON, &poison);
        placed = decide(result, errno, poison.updated, length);
    } while (query_again(placed, &asked));
    return placed;
}

void lm_userfault_wake(int fd, uint64_t address, uint64_t length) {
    struct uffdio_range range = {.start = address, .len = length};
    ioctl(fd, UFFDIO_WAKE, &range);
}

int lm_userfault_register(int fd, uint64_t start, uint64_t end) {
    struct uffdio_register range = {.range = {.start = start, .len = end - start},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    return ioctl(fd, UFFDIO_REGISTER, &range) ? -errno : 0;
}

int lm_userfault_unregister(int fd, uint64_t start, uint64_t end) {
    struct uffdio_range range = {.start = start, .len = end - start};
    return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}
