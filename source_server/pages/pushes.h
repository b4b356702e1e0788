/* Pushes: memory that a destination cannot request, or should have before it requests it. */
#ifndef LM_PAGES_PUSHES_H
#define LM_PAGES_PUSHES_H

#include "source_server/pages/client.h"

/* cffi: begin */
#define LM_PUSH_PRESENT 1
#define LM_PUSH_REMEMBER 2
#define LM_PUSH_CHANGED 4
#define LM_PUSH_URGENT 8

/* A stretch of a space: addresses in bytes, multiples of the page size. LM_PUSH_PRESENT in `flags`: only
 * pages that the page tables show as there. */
struct lm_push_run {
    uint64_t start;
    uint64_t end;
    uint32_t space;
    uint32_t flags;
};

/* Send the runs on the bulk channel, and END with `id` (not 0) after them; return when all is written.
 * LM_PUSH_REMEMBER: keep a digest of every page sent, and leave out what is no longer mapped, since the process
 * runs. LM_PUSH_CHANGED: leave out pages whose digest is the remembered one; a page that was sent and has gone is
 * sent as it reads now. LM_PUSH_URGENT: no limit holds the push back, for a frozen process waits for it. Returns 0
 * or -errno: -ESRCH when the process is gone, -EPIPE when the peer is, -ENOENT for an unknown space. */
int lm_page_client_push(struct lm_page_client *client, uint32_t id, const struct lm_push_run *runs,
                        size_t count, uint32_t flags);
/* Discard the digests of the pages in [start, end), bytes: the next push sends them whatever they are. */
void lm_page_client_discard_pushed(struct lm_page_client *client, uint32_t space, uint64_t start,
                                   uint64_t end);
/* cffi: end */

/* Gather the pages from `at` on as frames of the bulk sender, which refer to `content` until they are
 * flushed. The bulk lock is held. Returns 0 or -errno. */
int lm_push_stretch(struct lm_page_client *client, uint64_t at, uint32_t pages, const unsigned char *content);

#endif
