/*
 * The source's word after READY, as the custodian of the husk reads it from the CONTROL socket: it holds no
 * Python any more, and needs of a message only its kind.
 */
#ifndef LM_RESTORER_VERDICT_H
#define LM_RESTORER_VERDICT_H

enum lm_verdict {
    LM_VERDICT_COMMIT,
    LM_VERDICT_NO,    /* the source said no, or the process has ended */
    LM_VERDICT_DOUBT, /* the connection ended, however it did: COMMIT may have been sent and lost */
};

/* Wait for it. The end of the process behind `pidfd` ends the wait: there is nothing to decide any more. */
enum lm_verdict lm_verdict_await(int control_socket, int pidfd);

/* cffi: begin */
/* The same for the tests: 0 COMMIT, 1 no, 2 doubt. */
int lm_verdict_number(int control_socket, int pidfd);
/* cffi: end */

#endif
