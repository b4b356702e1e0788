/*
 * x86-64: the stub that is copied into a process, to run a program of system calls there or to wait. What it is for
 * stands in kernel/arch/arch.h. It is position independent.
 *
 * To run a program it is set going at its beginning with
 *     rbx   the first row
 *     r12   the row to go on with when a checked call fails: the ending
 *     r13   for a program that ends with LM_ROW_HOME: the stack pointer with which rt_sigreturn finds its frame
 *
 * It touches no other memory than the table and what the rows name, no stack and no vector registers. It changes
 * rax, rdi, rsi, rdx, r10, r8, r9, rbp, rcx and r11 (these two by the syscall instruction itself), and the flags.
 *
 * To wait it is set going at lm_stub_park with
 *     r12   the address of the word
 *     r13   the stack pointer with which rt_sigreturn finds its frame
 */
#include "kernel/arch/arch.h"

#include <asm/unistd.h>

#define NO_CALL (LM_ROW_STORE | LM_ROW_COPY | LM_ROW_TRAP | LM_ROW_HOME)
#define ARGUMENT(n) (LM_ROW_ARGUMENTS + 8 * (n))
#define LAST_ERROR -4095
#define POLL_NS 1000000

    .section .rodata
    .globl  lm_stub, lm_stub_park
    .hidden lm_stub, lm_stub_park
    .balign 64

lm_stub:
.Lrow:
    mov     LM_ROW_FLAGS(%rbx), %ebp    // what kind of row
    test    $NO_CALL, %ebp
    jne     .Lno_call
    mov     LM_ROW_NUMBER(%rbx), %eax   // a system call: its number
    mov     ARGUMENT(0)(%rbx), %rdi     // and its six arguments (syscall(2))
    mov     ARGUMENT(1)(%rbx), %rsi
    mov     ARGUMENT(2)(%rbx), %rdx
    mov     ARGUMENT(3)(%rbx), %r10
    mov     ARGUMENT(4)(%rbx), %r8
    mov     ARGUMENT(5)(%rbx), %r9
    syscall
    mov     %rax, LM_ROW_RESULT(%rbx)   // for whoever reads the table, and for later rows
    test    $LM_ROW_CHECKED, %ebp
    je      .Lnext                      // any result will do
    cmp     $LAST_ERROR, %rax
    jb      .Lnext                      // unsigned: below the errors, which are the highest numbers
    mov     %r12, %rbx                  // an error: on with the ending
    jmp     .Lrow

.Lnext:
    add     $LM_ROW_SIZE, %rbx
    jmp     .Lrow

.Lno_call:
    test    $(LM_ROW_TRAP | LM_ROW_HOME), %ebp
    jne     .Llast
    mov     ARGUMENT(0)(%rbx), %rdi     // where to write
    mov     ARGUMENT(1)(%rbx), %rax     // what: LM_ROW_STORE has the value itself
    test    $LM_ROW_COPY, %ebp
    je      .Lstore
    mov     (%rax), %rax                // LM_ROW_COPY has its address
.Lstore:
    mov     %rax, (%rdi)
    jmp     .Lnext

.Llast:
    test    $LM_ROW_HOME, %ebp
    jne     .Lhome
.Ltrap:
    int3                                // stops for the tracer, and again for one that resumes it
    jmp     .Ltrap

lm_stub_park:
    mov     (%r12), %eax                // the word
    cmp     $LM_PARK_GO_HOME, %eax
    je      .Lhome
    cmp     $LM_PARK_STAY, %eax
    jne     .Lundecided
    mov     $__NR_pause, %eax           // for good; a signal, if one can come, wakes it only to read the word again
    syscall
    jmp     lm_stub_park
.Lundecided:
    lea     .Lpoll_time(%rip), %rdi     // nanosleep(&poll_time, NULL)
    xor     %esi, %esi
    mov     $__NR_nanosleep, %eax
    syscall
    jmp     lm_stub_park

.Lhome:
    mov     %r13, %rsp                  // only now: a handler let in before ran on the thread's own stack
    mov     $__NR_rt_sigreturn, %eax
    syscall
    jmp     .Ltrap                      // not reached: rt_sigreturn goes on elsewhere, or kills

    .balign 8
.Lpoll_time:
    .quad   0, POLL_NS                  // struct timespec

    .org    lm_stub + LM_STUB_ROOM      // goes forwards only: a stub that outgrows its room does not assemble

    .section .note.GNU-stack, "", @progbits
