#ifndef LM_PROCESS_DESCRIPTOR_CALLS_H
#define LM_PROCESS_DESCRIPTOR_CALLS_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>

/* System calls on descriptors that Python 3.11 lacks. Every function returns its result or -errno. */

/* cffi: begin */
/* tee(2): the content of pipe `from` appears in pipe `to` as well, without being consumed. */
long lm_tee(int from, int to, unsigned long length);
/* F_GETOWN_EX and F_GETSIG: who is told that the descriptor is ready, and by which signal. */
int lm_get_owner(int number, int *type, int *id, int *signal);
/* cffi: end */

#if 0
/* cffi: begin */
#define F_OWNER_TID ...
#define F_OWNER_PID ...
#define F_OWNER_PGRP ...
#define F_SETOWN_EX ...
#define F_SETSIG ...
/* cffi: end */
#endif
#endif
