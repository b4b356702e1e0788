/*
 * The husk: the smallest program there is, started so that a process exists which can be emptied and filled.
 * Everything it ever does is injected; left alone it waits.
 */
#include "kernel/arch/freestanding.h"

#include <sys/syscall.h>

void lm_main(const long *stack) {
    for (;;)
        lm_call(SYS_pause, 0, 0, 0, 0, 0);
}
