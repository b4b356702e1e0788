#ifndef LM_WIRE_WRITTEN_H
#define LM_WIRE_WRITTEN_H

#include <stdint.h>

/* cffi: begin */
/* Bytes ever written into a TCP socket: acknowledged ones and those still queued (tcp(7): TCP_INFO
 * tcpi_bytes_acked; SIOCOUTQ). The kernel counts them, whatever becomes of the process that wrote: who holds
 * a duplicate can tell what was said. 0 or -errno. */
int lm_bytes_written(int socket, uint64_t *count);
/* cffi: end */

#endif
