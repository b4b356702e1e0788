/*
 * What ps(1), pgrep(1) and top(1) call a process that has been forked from a command of ours. Without a name
 * of its own, whoever means the command kills it too (`pkill -f`), and with some of them the memory of a
 * moved process would be lost.
 */
#ifndef LM_KERNEL_OWN_NAME_H
#define LM_KERNEL_OWN_NAME_H

/* cffi: begin */
/* Call this process `name` (15 bytes at most), and its command line "name: purpose", as far as the old one
 * gives room. Calls no function that takes a lock. Returns 0 or -errno. */
int lm_own_name(const char *name, const char *purpose);
/* cffi: end */

#endif
