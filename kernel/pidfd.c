#define _GNU_SOURCE
#include "kernel/pidfd.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int result_or_errno(long result) {
    return result < 0 ? -errno : (int)result;
}

int lm_pidfd_open(int pid, unsigned int flags) {
    return result_or_errno(syscall(SYS_pidfd_open, pid, flags));
}

int lm_pidfd_getfd(int pidfd, int number) {
    return result_or_errno(syscall(SYS_pidfd_getfd, pidfd, number, 0));
}

int lm_pidfd_send_signal(int pidfd, int signal) {
    return result_or_errno(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int lm_pidfd_is_ending(int pidfd) {
    /* It gives back the memory of a process that has been killed, and does nothing to another one but to say so. */
    return syscall(SYS_process_mrelease, pidfd, 0) == 0 ||
           (errno != EINVAL && errno != ENOSYS && errno != EPERM);
}

int lm_send_to_thread(int pid, int tid, int signal) {
    return result_or_errno(syscall(SYS_tgkill, pid, tid, signal));
}

int lm_kcmp(int first, int second, int type, unsigned long first_index, unsigned long second_index) {
    return result_or_errno(syscall(SYS_kcmp, first, second, type, first_index, second_index));
}

struct undo_question {
    int pid;
    int answer;
};

static int ask_of_undo_list(void *argument) {
    struct undo_question *question = argument;

    question->answer = lm_kcmp(question->pid, (int)syscall(SYS_getpid), KCMP_SYSVSEM, 0, 0);
    return 0;
}

int lm_has_undo_list(int pid) {
    _Alignas(16) char stack[16384];
    struct undo_question question = {.pid = pid, .answer = -ECHILD};
    int child = clone(ask_of_undo_list, stack + sizeof stack, CLONE_VM | CLONE_VFORK, &question);

    if (child < 0)
        return -errno;
    /* It ends without a signal, so that nobody else waits for it. */
    while (waitpid(child, NULL, __WCLONE) < 0 && errno == EINTR)
        continue;
    return question.answer > 0 ? 1 : question.answer;
}

/* For sorting the places of descriptors by the kernel's order of their open files. */
struct order {
    const int *numbers;
    int own;
    int error;
};

static int compare(const void *first, const void *second, void *argument) {
    struct order *order = argument;
    unsigned long one = (unsigned long)order->numbers[*(const int *)first],
                  other = (unsigned long)order->numbers[*(const int *)second];
    int result = lm_kcmp(order->own, order->own, KCMP_FILE, one, other);

    if (result < 0)
        order->error = result;
    return result == 1 ? -1 : result > 1;
}

/* Number them as they stand, as long as they stand in the kernel's order; returns how many. */
static size_t number_in_order(struct order *order, const int *sorted, size_t count, int *places) {
    int place = 0;

    for (size_t i = 0; i < count; i++) {
        int result = i == 0 ? 0 : compare(&sorted[i - 1], &sorted[i], order);

        if (result > 0 || order->error != 0)
            return i;
        place += result < 0;
        places[sorted[i]] = place;
    }
    return count;
}

int lm_number_open_files(const int *numbers, size_t count, int *places) {
    struct order order = {.numbers = numbers, .own = getpid()};
    int *sorted = malloc((count ? count : 1) * sizeof *sorted);

    if (sorted == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        sorted[i] = (int)i;
    if (number_in_order(&order, sorted, count, places) != count && order.error == 0) {
        qsort_r(sorted, count, sizeof *sorted, compare, &order);
        number_in_order(&order, sorted, count, places);
    }
    free(sorted);
    return order.error;
}

int lm_kcmp_epoll_target(int first, int second, int number, int epoll, int target, int offset) {
    struct kcmp_epoll_slot slot = {
        .efd = (unsigned int)epoll, .tfd = (unsigned int)target, .toff = (unsigned int)offset};

    return lm_kcmp(first, second, KCMP_EPOLL_TFD, (unsigned long)number, (unsigned long)&slot);
}
