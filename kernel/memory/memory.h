/*
 * Reading and writing another process's memory: process_vm_readv(2), process_vm_writev(2), and /proc/PID/mem
 * for what the process's own protections forbid (proc(5)).
 */
#ifndef LM_KERNEL_MEMORY_H
#define LM_KERNEL_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* All `length` bytes, or -errno: -EFAULT when a part is not mapped or its protection forbids it; -ESRCH. A
 * page that waits for a userfaultfd makes the reader wait. */
int lm_memory_read(int pid, uint64_t address, void *out, size_t length);
int lm_memory_write(int pid, uint64_t address, const void *bytes, size_t length);

/* The same through /proc/PID/mem, which heeds no protection (a tracer's access): PROT_NONE can be read,
 * read-only private pages are written as copies. A page that waits for a userfaultfd is -EIO. `mem_fd` is an
 * open /proc/PID/mem. */
int lm_memory_read_forced(int mem_fd, uint64_t address, void *out, size_t length);
int lm_memory_write_forced(int mem_fd, uint64_t address, const void *bytes, size_t length);

/* Write to shared anonymous memory by the file that is behind it (/proc/PID/map_files): where the process may not write,
 * a tracer may not either, for what it forces are private copies. -EFAULT where no such memory is mapped. */
int lm_memory_write_shared(int pid, uint64_t address, const void *bytes, size_t length);
/* cffi: end */

#endif
