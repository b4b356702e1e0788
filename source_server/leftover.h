/*
 * What lm-serve has in the memory of the source while its threads are frozen: the mapping of a stub. lm-serve records it
 * before it is made, and forgets it when it is gone again. If lm-serve dies in between, the custodian starts a program
 * (source_server/leftover.py) that takes it away, as soon as all threads are at home.
 */
#ifndef LM_SOURCE_SERVER_LEFTOVER_H
#define LM_SOURCE_SERVER_LEFTOVER_H

#include <stdint.h>

/* cffi: begin */
/* Shared between lm-serve and its custodian. `length` is written last; 0: there is nothing. The program is told all
 * three in hexadecimal digits. */
struct lm_leftover {
    uint64_t pid, address, length;
};
/* cffi: end */

#endif
