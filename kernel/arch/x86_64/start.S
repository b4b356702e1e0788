/* x86-64: how a program without libc begins, and its system calls: kernel/arch/freestanding.h. */
    .text
    .globl  _start, lm_call

_start:
    mov     %rsp, %rdi                  // the argument: the stack as the kernel has left it
    and     $-16, %rsp                  // which C wants to be aligned (System V psABI, 3.2.2)
    call    lm_main                     // does not return

lm_call:
    mov     %rdi, %rax                  // from the places of C's arguments to those of the system call
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
    mov     %r8, %r10
    mov     %r9, %r8
    syscall
    ret

    .section .note.GNU-stack, "", @progbits
