/*
 * The ioctls of a userfaultfd, with the meaning of their errors decided once: nothing else reads their errno
 * (ioctl_userfaultfd(2)).
 */
#ifndef LM_PAGER_USERFAULT_H
#define LM_PAGER_USERFAULT_H

#include <stdint.h>

enum lm_answer {
    LM_ANSWER_PLACED,  /* all of it */
    LM_ANSWER_SHORT,   /* a part: go on from there */
    LM_ANSWER_PRESENT, /* the first page is there already; sleepers have to be woken */
    LM_ANSWER_RETRY,   /* an event is unread: read it, read the states again, then try again */
    LM_ANSWER_NOWHERE, /* not one registered mapping */
    LM_ANSWER_GONE,    /* the process's memory is gone */
    LM_ANSWER_FAILED   /* no memory, and the like: see error */
};

struct lm_placed {
    enum lm_answer answer;
    uint64_t bytes; /* done, also when the answer is SHORT */
    int error;      /* -errno behind FAILED */
};

/* Place a copy of `length` bytes at `address`, and wake whoever waits there. */
struct lm_placed lm_userfault_copy(int fd, uint64_t address, const void *data, uint64_t length);
/* Place zero pages. */
struct lm_placed lm_userfault_zero(int fd, uint64_t address, uint64_t length);
/* Make a touch of these pages end with SIGBUS (UFFDIO_POISON, since Linux 6.6). */
struct lm_placed lm_userfault_poison(int fd, uint64_t address, uint64_t length);
void lm_userfault_wake(int fd, uint64_t address, uint64_t length);

/* Register [start, end) for missing pages. Returns 0 or -errno. */
int lm_userfault_register(int fd, uint64_t start, uint64_t end);
int lm_userfault_unregister(int fd, uint64_t start, uint64_t end);

#endif
