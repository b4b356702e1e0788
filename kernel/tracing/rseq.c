#define _GNU_SOURCE
#include "kernel/tracing/rseq.h"

#include "kernel/arch/arch.h"
#include "kernel/memory/memory.h"
#include "kernel/tracing/tracee.h"

#include <linux/rseq.h>
#include <stddef.h>
#include <stdint.h>

enum { GET_RSEQ_CONFIGURATION = 0x420f };

int lm_rseq_area(int tid, struct lm_rseq_configuration *area) {
    *area = (struct lm_rseq_configuration){0};
    return lm_trace_memory(GET_RSEQ_CONFIGURATION, tid, sizeof *area, area);
}

int lm_rseq_abort(int tid, const struct lm_rseq_configuration *area, struct user_regs_struct *registers) {
    struct rseq_cs section = {0};
    uint64_t place = 0;
    int error = 0;

    if (area->address == 0)
        return 0;
    error = lm_memory_read(tid, area->address + offsetof(struct rseq, rseq_cs), &place, sizeof place);
    if (error != 0 || place == 0)
        return error;
    error = lm_memory_read(tid, place, &section, sizeof section);
    if (error != 0)
        return error;
    if (lm_arch_instruction_pointer(registers) - section.start_ip >= section.post_commit_offset)
        return 0;
    lm_arch_set_instruction_pointer(registers, section.abort_ip);
    return lm_trace_set_registers(tid, registers);
}
