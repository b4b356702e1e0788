/*
 * What lm-serve has in the memory of the source while its threads are frozen: the mapping of a stub. lm-serve records it
 * before it is made, and forgets it when it is gone again. If lm-serve dies in between, the custodian starts a program
 * (source_server/leftover.py) that takes it away, as soon as all threads are at home.
 */
#ifndef LM_SOURCE_SERVER_LEFTOVER_H
#define LM_SOURCE_SERVER_LEFTOVER_H

#include <stdint.h>

/* cffi: begin */
#define LM_LEFTOVER_WORD 17

/* Shared between lm-serve and its custodian. `length` is written last; 0: there is nothing. `arguments` and
 * `environment` are those of execve(2), in memory that is shared too; three of the arguments are `words`: process,
 * address and length, in hexadecimal digits. */
struct lm_leftover {
    uint64_t pid, address, length;
    char **arguments, **environment;
    char words[3][LM_LEFTOVER_WORD];
};

/* Start that program if anything is left. It needs no memory but the record's. */
void lm_leftover_take_away(struct lm_leftover *leftover);
/* cffi: end */

#endif
