/*
 * The page server: answers for the memory of processes that hold still, and pushes what cannot be asked for.
 * Before they hold still it answers nothing: who has the ticket gets what is pushed, and no more.
 *
 * Two connections, two threads: the fault thread does nothing but wait for requests on the FAULT channel and
 * answer each at once; the bulk thread answers runs on the BULK channel. A push is made by the caller's
 * thread, also on the BULK channel. Nothing of it needs the interpreter. The order of calls:
 *
 *     create -> add_process / add_object -> connect -> push ... -> answer -> wait ... -> destroy
 *
 * connect may be called again after the connections were lost; spaces may be added at any time. All functions
 * may be called from any thread, but destroy only when no other call is under way.
 */
#ifndef LM_SOURCE_PAGE_SERVER_H
#define LM_SOURCE_PAGE_SERVER_H

#include "source_server/pages/page_sender.h"

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_SERVER_IDLE 0
#define LM_SERVER_CONNECTED 1
#define LM_SERVER_LOST 2
#define LM_SERVER_REFUSED 3
#define LM_SERVER_FAILED 4

#define LM_PUSH_PRESENT 1
#define LM_PUSH_REMEMBER 2
#define LM_PUSH_CHANGED 4
#define LM_PUSH_URGENT 8

struct lm_page_server;

/* A stretch of a space: addresses in bytes, multiples of the page size. LM_PUSH_PRESENT in `flags`: only
 * pages that the page tables show as there. */
struct lm_push_run {
    uint64_t start;
    uint64_t end;
    uint32_t space;
    uint32_t flags;
};

/* `statistics` may be NULL, else it must outlive the server. Returns NULL when there is no memory. */
struct lm_page_server *lm_page_server_create(struct lm_server_statistics *statistics);
/* Ends the threads and closes everything. */
void lm_page_server_destroy(struct lm_page_server *server);

/* Serve `space` from the memory of `pid`, which must hold still from the first request on (not for pushes).
 * Returns 0 or -errno; -EEXIST when the number is taken. */
int lm_page_server_add_process(struct lm_page_server *server, uint32_t space, int pid);
/* Serve `space` (LM_FIRST_OBJECT or more) from a duplicate of the descriptor, by offset. */
int lm_page_server_add_object(struct lm_page_server *server, uint32_t space, int fd);

/* Begin to serve on two connected sockets (they are duplicated), or serve on after the last two were lost.
 * `session` is 16 bytes. Returns 0 or -errno. */
int lm_page_server_connect(struct lm_page_server *server, int fault_fd, int bulk_fd, const uint8_t *session,
                           uint32_t attempt);

/* Whether requests are answered: from now on (1), for all processes hold still, or not (0), as at the beginning.
 * A request that comes while they are not ends the connections. */
void lm_page_server_answer(struct lm_page_server *server, int answering);

/* Bytes per second for the bulk stream, 0 for no limit. Faults are never held back. */
void lm_page_server_limit(struct lm_page_server *server, uint64_t bytes_per_second);
/* LM_COMPRESS_AUTO, LM_COMPRESS_NONE or a level of zstd. */
void lm_page_server_compress(struct lm_page_server *server, int level);

/* Send the runs on the bulk channel and END with `id` (not 0) after them; returns when all is written.
 * LM_PUSH_REMEMBER: keep a digest of every page sent, and leave out what is no longer mapped: the process
 * runs. LM_PUSH_CHANGED: leave out pages whose digest is the remembered one; what was sent and is gone is
 * sent as it reads now. LM_PUSH_URGENT: no limit holds it back, for a frozen process waits for it. Returns 0
 * or -errno: -ESRCH when the process is gone, -EPIPE when the peer is, -ENOENT for an unknown space. */
int lm_page_server_push(struct lm_page_server *server, uint32_t id, const struct lm_push_run *runs,
                        size_t count, uint32_t flags);
/* Discard the digests of the pages in [start, end), bytes: the next push sends them whatever they are. */
void lm_page_server_discard_pushed(struct lm_page_server *server, uint32_t space, uint64_t start,
                                   uint64_t end);

/* End both connections, so that what writes on them in another thread comes back. */
void lm_page_server_hang_up(struct lm_page_server *server);

/* LM_SERVER_...: IDLE before connect; LOST when the peer is gone; REFUSED when it broke the protocol, or asked too early; FAILED
 * when the memory could not be read. */
int lm_page_server_state(struct lm_page_server *server);
/* Wait until the state is another than `state`, at most `timeout_ms` (-1: for ever). Returns the state. */
int lm_page_server_wait(struct lm_page_server *server, int state, int timeout_ms);
/* An eventfd, the server's own, that becomes readable when the state changes; read it to arm it again. */
int lm_page_server_event(struct lm_page_server *server);
/* The cause of the last loss as a sentence's end, "" when there is none. Returns the length. */
int lm_page_server_cause(struct lm_page_server *server, char *buffer, size_t size);
/* cffi: end */

#endif
