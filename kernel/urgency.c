#define _GNU_SOURCE
#include "kernel/urgency.h"

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct sched_attr of sched_setattr(2), as of its first version. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

enum { SHORT_NS = 200000, LONG_NS = 10000000 };

/* For ordinary threads `runtime` is the length of a slice since Linux 6.12: a thread that wants a shorter one than
 * the thread that runs has takes its place when it wakes. Older kernels ignore it. */
static void set(int policy, uint64_t runtime) {
    int nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
    struct attributes attributes = {
        .size = sizeof attributes, .policy = (uint32_t)policy, .nice = nice, .runtime = runtime};
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}

/* Not by the real-time scheduler: its wake-ups go to another core, and in pairs of runs beside bulk the
 * median fault took 87 us with SCHED_FIFO and 65 us with short slices. Nor by a better nice value beside
 * them: in pairs of runs the median fault took 82 us with -10 and 76 us without, and bulk lost. */
void lm_urgency_first(void) {
    set(SCHED_OTHER, SHORT_NS);
}

void lm_urgency_last(void) {
    /* SCHED_BATCH: when data comes in, this thread does not take the place of one that runs. */
    set(SCHED_BATCH, LONG_NS);
}
