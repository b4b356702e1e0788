#include "kernel/arch/sigreturn_frame.h"

#include "kernel/arch/arch.h"
#include "kernel/arch/x86_64/cpu.h"

#include <asm/signal.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
#include <cpuid.h>
#include <errno.h>
#include <string.h>

/* The kernel's rt_sigframe without its siginfo, which rt_sigreturn does not read. */
struct frame {
    uint64_t return_code;
    struct ucontext context;
};

enum {
    FRAME_SIZE = (sizeof(struct frame) + 63) & ~63,
    XSTATE_BV_OFFSET = 512,
    XSAVE_HEADER_END = 576,
    /* AMX: a thread may lack the permission, and then a frame must not have room for it */
    TILE_CONFIGURATION = 17,
    TILE_DATA = 18,
    FEATURES = 63,
    ERESTARTSYS_ = 512,
    ERESTARTNOINTR_ = 513,
    ERESTARTNOHAND_ = 514,
    ERESTART_RESTARTBLOCK_ = 516,
};

/* do_sigaltstack answers EINVAL to unknown flags, and rt_sigreturn goes on without it: the alternate stack
 * stays. */
static const int LEAVE_ALTERNATE_STACK = 0x3fffffff;

static const uint64_t TILES = (uint64_t)1 << TILE_CONFIGURATION | (uint64_t)1 << TILE_DATA;

/* Bytes of the standard-format xsave image that all components but AMX's take. */
static uint32_t static_xstate_size(void) {
    /* Called once, as in lm_arch_xstate_room. */
    static _Atomic uint32_t known;
    const uint64_t enabled = known != 0 ? 0 : lm_xcr0() & ~TILES;
    uint32_t end = XSAVE_HEADER_END;

    if (known != 0)
        return known;
    for (unsigned int feature = 2; feature < FEATURES; feature++) {
        uint32_t size = 0, offset = 0, ecx = 0, edx = 0;

        if ((enabled >> feature & 1) == 0)
            continue;
        if (!__get_cpuid_count(0xd, feature, &size, &offset, &ecx, &edx))
            break;
        if (size != 0 && (ecx & 1) == 0 && offset + size > end)
            end = offset + size;
    }
    known = end;
    return end;
}

static int is_zero(const char *bytes, size_t length) {
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* Bytes of an xsave image that a frame has to have. What the tiles hold decides, not their bits in XSTATE_BV:
 * of tiles that hold nothing these may come and go (Intel SDM vol. 1, 13.6) between the choice of a place and
 * the writing of the frame. */
static size_t needed_size(const char *xstate, size_t xstate_size) {
    size_t needed = static_xstate_size();

    if (xstate_size == 0)
        return needed;
    if (xstate_size <= needed || !is_zero(xstate + needed, xstate_size - needed))
        return xstate_size;
    return needed;
}

size_t lm_sigreturn_frame_room(const void *xstate, size_t xstate_size) {
    size_t room = FRAME_SIZE + needed_size(xstate, xstate_size) + sizeof(uint32_t);

    return (room + 63) & ~(size_t)63;
}

void lm_sigreturn_frame_prepare(void) {
    lm_arch_xstate_room();
    static_xstate_size();
}

uint64_t lm_sigreturn_frame_return_pointer(uint64_t address) {
    return address;
}

uint64_t lm_sigreturn_frame_sigreturn_pointer(uint64_t address) {
    return address + sizeof(uint64_t);
}

static int place_xstate(struct frame *frame, char *out, size_t room, uint64_t address, const char *xstate,
                        size_t xstate_size) {
    struct _fpx_sw_bytes software = {0};
    const uint32_t magic2 = FP_XSTATE_MAGIC2;
    uint32_t size = (uint32_t)needed_size(xstate, xstate_size);

    if (FRAME_SIZE + size + sizeof magic2 > room)
        return -ENOSPC;
    memcpy(out + FRAME_SIZE, xstate, size);
    if (size < xstate_size) {
        uint64_t used = 0;

        memcpy(&used, xstate + XSTATE_BV_OFFSET, sizeof used);
        used &= ~TILES;
        memcpy(out + FRAME_SIZE + XSTATE_BV_OFFSET, &used, sizeof used);
    }
    software.magic1 = FP_XSTATE_MAGIC1;
    software.extended_size = size + (uint32_t)sizeof magic2;
    /* PTRACE_GETREGSET leaves the features that this kernel enables in the first of the software bytes. */
    memcpy(&software.xfeatures, xstate + offsetof(struct _fpstate_64, sw_reserved),
           sizeof software.xfeatures);
    software.xstate_size = size;
    memcpy(out + FRAME_SIZE + offsetof(struct _fpstate_64, sw_reserved), &software, sizeof software);
    memcpy(out + FRAME_SIZE + size, &magic2, sizeof magic2);
    frame->context.uc_flags |= UC_FP_XSTATE;
    frame->context.uc_mcontext.fpstate = (void *)(uintptr_t)(address + FRAME_SIZE);
    return 0;
}

int lm_sigreturn_frame(void *out, size_t room, uint64_t address, const struct user_regs_struct *registers,
                       uint64_t mask, const void *xstate, size_t xstate_size, uint64_t return_code) {
    struct frame frame = {.return_code = return_code};
    struct sigcontext *home = &frame.context.uc_mcontext;
    int error = 0;

    if (room < FRAME_SIZE || address % 64 != 0)
        return -ENOSPC;
    home->rip = registers->rip;
    home->rax = registers->rax;
    if ((int64_t)registers->orig_rax >= 0) {
        switch (-(int64_t)registers->rax) {
        case ERESTARTSYS_:
        case ERESTARTNOINTR_:
        case ERESTARTNOHAND_:
        case ERESTART_RESTARTBLOCK_:
            home->rax = registers->orig_rax;
            home->rip -= 2;
        }
    }
    home->r8 = registers->r8;
    home->r9 = registers->r9;
    home->r10 = registers->r10;
    home->r11 = registers->r11;
    home->r12 = registers->r12;
    home->r13 = registers->r13;
    home->r14 = registers->r14;
    home->r15 = registers->r15;
    home->rdi = registers->rdi;
    home->rsi = registers->rsi;
    home->rbp = registers->rbp;
    home->rbx = registers->rbx;
    home->rdx = registers->rdx;
    home->rcx = registers->rcx;
    home->rsp = registers->rsp;
    home->eflags = registers->eflags;
    home->cs = (uint16_t)registers->cs;
    home->ss = (uint16_t)registers->ss;
    frame.context.uc_flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    frame.context.uc_stack.ss_flags = LEAVE_ALTERNATE_STACK;
    memcpy(&frame.context.uc_sigmask, &mask, sizeof mask);
    if (xstate_size >= XSAVE_HEADER_END) {
        error = place_xstate(&frame, out, room, address, xstate, xstate_size);
        if (error != 0)
            return error;
    }
    memcpy(out, &frame, sizeof frame);
    return 0;
}
