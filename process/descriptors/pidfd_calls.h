#ifndef LM_PROCESS_PIDFD_CALLS_H
#define LM_PROCESS_PIDFD_CALLS_H

/* cffi: begin */
/* A pidfd, with these flags of pidfd_open(2), of a process in the PID namespace of `process` that has ended. For the
 * processes of another namespace it would be no process of theirs at all (EINVAL, not ESRCH). Returns it or -errno. */
int lm_ended_pidfd(int process, unsigned int flags);
/* cffi: end */
#endif
