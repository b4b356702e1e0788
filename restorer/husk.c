/*
 * The husk: the smallest program there is, started so that there is a process to be emptied and filled. Everything
 * that it ever does is injected; otherwise it waits.
 */
#include "kernel/arch/freestanding.h"

#include <sys/syscall.h>

void lm_main(const long *stack) {
    for (;;)
        lm_call(SYS_pause, 0, 0, 0, 0, 0);
}
