/*
 * feature: a thread inside a restartable sequence: it is aborted by the move, as by any interruption
 */
#include "check.h"
#include <sys/rseq.h>

static volatile int leave, aborted, unprotected;

/* Stays within the section until it is aborted or told to leave; a section that the kernel has discarded shows as an
 * empty rseq_cs. Returns 0 when it was told to leave, 1 when it was aborted, 2 when it ran on unprotected. */
static int stay(struct rseq *area) {
    int result;

    __asm__ volatile(".pushsection __rseq_cs, \"aw\"\n\t"
                     ".balign 32\n\t"
                     "3: .long 0, 0\n\t"
                     ".quad 1f, 2f - 1f, 4f\n\t"
                     ".popsection\n\t"
                     "lea 3b(%%rip), %%rax\n\t"
                     "mov %%rax, 8(%1)\n\t"
                     "1:\n\t"
                     "cmpq $0, 8(%1)\n\t"
                     "je 5f\n\t"
                     "cmpl $0, %2\n\t"
                     "je 1b\n\t"
                     "2:\n\t"
                     "mov $0, %0\n\t"
                     "jmp 6f\n\t"
                     ".byte 0x0f, 0xb9, 0x3d\n\t"
                     ".long 0x53053053\n\t"
                     "4: mov $1, %0\n\t"
                     "jmp 6f\n\t"
                     "5: mov $2, %0\n\t"
                     "6:\n\t"
                     : "=&r"(result)
                     : "r"(area), "m"(leave)
                     : "rax", "memory", "cc");
    return result;
}

static void *body(void *argument) {
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    int how;

    while ((how = stay(area)) != 0) {
        aborted += how == 1;
        unprotected += how == 2;
    }
    return argument;
}

int main(int argc, char **argv) {
    pthread_t thread;

    check_start(argc, argv);
    CHECK(__rseq_size > 0, "the C library registers none");
    CHECK(pthread_create(&thread, NULL, body, NULL) == 0, "pthread_create");
    check_move();
    check_sleep(50);
    leave = 1;
    CHECK(pthread_join(thread, NULL) == 0, "pthread_join");
    CHECK(unprotected == 0, "a section went on %d times after the kernel had discarded it", unprotected);
    return check_passed();
}
