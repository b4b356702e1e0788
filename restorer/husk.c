/*
 * The husk: the smallest program there is, started so that a process exists which can be emptied and filled.
 * Everything it ever does is injected; left alone it waits.
 */
#include <sys/syscall.h>

__attribute__((naked, noreturn, used)) void _start(void) {
    __asm__("1:\n\t"
            "mov %0, %%eax\n\t"
            "syscall\n\t"
            "jmp 1b\n\t" ::"i"(SYS_pause));
}
