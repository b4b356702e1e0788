/* Pages from a client of a page store, over one of its two connections. */
#ifndef LM_PAGER_SOCKET_SOURCE_H
#define LM_PAGER_SOCKET_SOURCE_H

#include "pager/page_source.h"
#include "wire/channel.h"

/* cffi: begin */
/* `link` as for lm_channel_init; `role` LM_ROLE_FAULT or LM_ROLE_BULK; `session` is 16 bytes. Returns 0
 * or -errno. */
int lm_socket_source_create(const struct lm_link *link, uint32_t role, const uint8_t *session,
                            uint32_t attempt, struct lm_page_source **source);
/* cffi: end */

#endif
