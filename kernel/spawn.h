/*
 * Starting a small static program as a child of this process: with an id of our choice, in namespaces of our
 * choice, holding no descriptor but one, and not before its tracer is ready.
 *
 * Some steps change the process that calls clone3 (a time namespace, another PID namespace for its children). A
 * starter takes them, a process of its own that lives for a moment and makes the child with CLONE_PARENT. So
 * nothing has to be undone here, and this process may have threads, with which setns(2) into a time namespace
 * fails. The starter and the child use no Python, no malloc and no lock of the C library.
 */
#ifndef LM_KERNEL_SPAWN_H
#define LM_KERNEL_SPAWN_H

#include <stdint.h>

/* cffi: begin */
/* Where it failed. */
enum lm_spawn_step {
    LM_SPAWN_PREPARE = 1,
    LM_SPAWN_STARTER,
    LM_SPAWN_TIME_NAMESPACE,
    LM_SPAWN_TIME_OFFSETS,
    LM_SPAWN_JOIN,
    LM_SPAWN_CLONE,
    LM_SPAWN_DESCRIPTORS,
    LM_SPAWN_MOUNTS,
    LM_SPAWN_PERSONALITY,
    LM_SPAWN_EXEC,
};

struct lm_spawn {
    int32_t program;              /* a descriptor of the program's file */
    int32_t identifier;           /* the id inside its own PID namespace; 0: any */
    int32_t new_namespaces;       /* 1: it becomes process 1 of a new PID and mount namespace */
    int32_t joined;               /* a pidfd of the process whose PID and mount namespaces it joins, or -1 */
    int32_t descriptor;           /* the one descriptor that it gets, or -1 */
    int32_t number;               /* the number under which it gets it */
    uint64_t personality;         /* personality(2) */
    uint64_t stack_limit;         /* soft limit of the stack, in bytes; 0: the same as ours */
    const char *time_offsets;     /* content of /proc/PID/timens_offsets for a new time namespace, or NULL */
    const char *const *arguments; /* argv, ends with NULL */
};

struct lm_spawned {
    int32_t pid;
    int32_t go;   /* write a byte: the child goes on to its exec; close it: the child ends */
    int32_t news; /* end of file: exec was done; else a struct lm_spawn_failure */
};

struct lm_spawn_failure {
    int32_t step;
    int32_t error;
};

/* Make the child; it waits for `go`. 0, or -errno with the step in `failed`. The child is reaped by the
 * caller. */
int lm_spawn(const struct lm_spawn *how, struct lm_spawned *spawned, int32_t *failed);
/* cffi: end */

#endif
