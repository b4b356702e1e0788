#define _GNU_SOURCE
#include "kernel/injection/program.h"

#include "kernel/arch/arch.h"
#include "kernel/memory/memory.h"
#include "kernel/tracing/tracee.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

enum {
    END_SIGNAL = SIGURG,
    PAGE = 4096,
    STOPS_BOUND = 1000,
};

/* A signal of END_SIGNAL's number that was the process's own, and came while a program ran. */
struct held {
    siginfo_t info;
    int count;
};

static int start(int tid, uint64_t stub, uint64_t table, uint64_t ending, uint64_t *mask) {
    struct user_regs_struct registers;
    int error = lm_trace_get_mask(tid, mask);

    if (error == 0)
        error = lm_trace_set_mask(tid, ~(UINT64_C(1) << (END_SIGNAL - 1)));
    if (error == 0)
        error = lm_trace_get_registers(tid, &registers);
    if (error != 0)
        return error;
    lm_arch_run_program(&registers, stub, table, ending, 0);
    error = lm_trace_set_registers(tid, &registers);
    return error != 0 ? error : lm_trace(PTRACE_CONT, tid, 0);
}

/* Put a signal that was taken out of the queue by mistake back into it, with all that is known of it: a signal
 * that is injected while it is blocked is queued again (kernel/signal.c, ptrace_signal). */
static int put_back(int tid, struct held *held) {
    int status = 0;
    int error = lm_trace_set_mask(tid, ~UINT64_C(0));

    if (error == 0)
        error = lm_trace_memory(PTRACE_SETSIGINFO, tid, 0, &held->info);
    if (error == 0)
        error = lm_trace(PTRACE_INTERRUPT, tid, 0);
    if (error == 0)
        error = lm_trace(PTRACE_CONT, tid, END_SIGNAL);
    if (error == 0)
        error = lm_trace_wait(tid, 0, &status);
    return error == 0 && !WIFSTOPPED(status) ? -ESRCH : error;
}

/* Whether the thread is at the call by which its program reports that it is done. */
static int has_reported(int tid, uint64_t ending, int *reported) {
    struct user_regs_struct registers;
    int error = lm_trace_get_registers(tid, &registers);

    *reported = error == 0 && lm_arch_row(&registers) == ending + LM_ENDING_TELLS * LM_ROW_SIZE;
    return error;
}

static int wait_for_end(int tid, uint64_t ending, struct held *held) {
    for (int stops = 0; stops < STOPS_BOUND; stops++) {
        int status = 0;
        int reported = 0;
        int error = lm_trace_wait(tid, 0, &status);

        if (error != 0)
            return error == -ECHILD ? -ESRCH : error;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (status >> 16 == 0) {
            switch (WSTOPSIG(status)) {
            case END_SIGNAL:
                error = has_reported(tid, ending, &reported);
                if (error != 0 || reported)
                    return error;
                error = lm_trace_memory(PTRACE_GETSIGINFO, tid, 0, &held->info);
                held->count = 1;
                break;
            case SIGSEGV:
            case SIGBUS:
            case SIGILL:
            case SIGFPE:
            case SIGTRAP:
                return -EFAULT;
            }
        }
        if (error == 0)
            error = lm_trace(PTRACE_CONT, tid, 0);
        if (error != 0)
            return error;
    }
    return -EBUSY;
}

static int finish(int tid, uint64_t ending, uint64_t mask) {
    struct held held = {.count = 0};
    int error = wait_for_end(tid, ending, &held);
    int back = 0;

    if (error == -ESRCH)
        return error;
    if (error == 0 && held.count > 0)
        error = put_back(tid, &held);
    back = lm_trace_set_mask(tid, mask);
    return error != 0 ? error : back;
}

int lm_program_run(struct lm_program_place *places, size_t count, uint64_t stub, uint64_t address,
                   void *memory, size_t size) {
    const int first = places[0].tid;
    size_t started = 0;
    int error = lm_memory_write(first, address, memory, size);

    for (; started < count && error == 0; started++) {
        struct lm_program_place *place = &places[started];

        error = start(place->tid, stub, place->table, place->ending, &place->mask);
        if (error != 0)
            break;
    }
    /* Those that run are waited for in any case. */
    for (size_t i = 0; i < started; i++) {
        int failed = finish(places[i].tid, places[i].ending, places[i].mask);

        if (error == 0)
            error = failed;
    }
    return error != 0 ? error : lm_memory_read(first, address, memory, size);
}

void lm_program_repeat(void *memory, size_t size, size_t count, const uint32_t *words, size_t word_count) {
    for (size_t i = 1; i < count; i++) {
        char *copy = (char *)memory + i * size;

        memcpy(copy, memory, size);
        for (size_t j = 0; j < word_count; j++) {
            char *word = copy + words[j] * sizeof(uint64_t);
            uint64_t address = 0;

            memcpy(&address, word, sizeof address);
            address += i * size;
            memcpy(word, &address, sizeof address);
        }
    }
}

static int find_instruction(int tid, const struct user_regs_struct *registers, uint64_t *address) {
    char code[PAGE];
    uint64_t page = lm_arch_instruction_pointer(registers) & ~(uint64_t)(PAGE - 1);
    long offset = 0;
    int error = lm_memory_read(tid, page, code, sizeof code);

    if (error != 0)
        return error;
    offset = lm_arch_find_syscall(code, sizeof code);
    if (offset < 0)
        return -ENOENT;
    *address = page + (uint64_t)offset;
    return 0;
}

/* Resume to the next syscall-stop; with or without PTRACE_O_TRACESYSGOOD. */
static int to_syscall_stop(int tid) {
    for (int stops = 0; stops < STOPS_BOUND; stops++) {
        int status = 0;
        int error = lm_trace(PTRACE_SYSCALL, tid, 0);

        if (error == 0)
            error = lm_trace_wait(tid, 0, &status);
        if (error != 0)
            return error == -ECHILD ? -ESRCH : error;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (status >> 16 == 0 && (WSTOPSIG(status) & ~0x80) == SIGTRAP)
            return 0;
    }
    return -EBUSY;
}

int lm_program_call(int tid, uint64_t number, const uint64_t *arguments, int64_t *result) {
    struct user_regs_struct saved, registers;
    uint64_t instruction = 0;
    uint64_t mask = 0;
    int error = lm_trace_get_registers(tid, &saved);

    if (error == 0)
        error = find_instruction(tid, &saved, &instruction);
    if (error == 0)
        error = lm_trace_get_mask(tid, &mask);
    if (error == 0)
        error = lm_trace_set_mask(tid, ~UINT64_C(0));
    if (error != 0)
        return error;
    registers = saved;
    lm_arch_call(&registers, instruction, number, arguments);
    error = lm_trace_set_registers(tid, &registers);
    if (error == 0)
        error = to_syscall_stop(tid);
    if (error == 0)
        error = to_syscall_stop(tid);
    if (error == 0)
        error = lm_trace_get_registers(tid, &registers);
    if (error != 0)
        return error;
    *result = lm_arch_result(&registers);
    error = lm_trace_set_registers(tid, &saved);
    return error != 0 ? error : lm_trace_set_mask(tid, mask);
}
