/*
 * A client of a page store: one destination, with its connections, what it has been sent, its order and its pace.
 * It gets answers for the memory of processes that hold still, and pushes of what it cannot request (pushes.h,
 * rounds.h). Before the processes hold still it gets no answers: whoever has the ticket gets what is pushed, and no
 * more.
 *
 * There are two connections and two threads. The fault thread only waits for requests on the FAULT channel and
 * answers each at once. The bulk thread answers runs on the BULK channel. The caller's thread makes pushes, also on
 * the BULK channel. None of them needs the interpreter. The order of calls:
 *
 *     lm_page_store_create -> add_process / add_object
 *     create -> connect -> push ... -> lm_page_store_open -> wait ... -> destroy
 *
 * connect may be called again, after the connections were lost or before anybody has noticed it: the last ones are ended
 * first. A client that comes again with attempt N need not say what it has: nothing of what was requested or answered on
 * the last connections is remembered here. It requests what it lacks, and only that (pager/pager.h). Its messages on
 * CONTROL are acknowledged by number (wire/again.py). Which attempts are let in is settled before
 * (wire/reception.py, Readmission). A push is not resumed: before COMMIT a lost connection ends the migration.
 *
 * All functions may be called from any thread, except that destroy needs all other calls to be over.
 */
#ifndef LM_PAGES_CLIENT_H
#define LM_PAGES_CLIENT_H

#include "source_server/pages/push_memory.h"
#include "source_server/pages/sender.h"
#include "source_server/pages/store.h"
#include "wire/status.h"

#include <pthread.h>
#include <stdatomic.h>

/* cffi: begin */
/* IDLE before connect; LOST when the peer is gone; DROPPED when it broke the protocol, or sent a request too early;
 * FAILED when the memory could not be read. */
#define LM_CLIENT_IDLE 0
#define LM_CLIENT_CONNECTED 1
#define LM_CLIENT_LOST 2
#define LM_CLIENT_DROPPED 3
#define LM_CLIENT_FAILED 4

struct lm_page_client;

/* `statistics` may be NULL; else it must outlive the client, as the store must. Returns NULL when there is no memory. */
struct lm_page_client *lm_page_client_create(struct lm_page_store *store,
                                             struct lm_client_statistics *statistics);
/* Ends the threads and closes everything. */
void lm_page_client_destroy(struct lm_page_client *client);

/* Begin to serve on two links (lm_channel_init), or go on with new ones after the last two were lost.
 * `session` is 16 bytes. Returns 0 or -errno. */
int lm_page_client_connect(struct lm_page_client *client, const struct lm_link *fault,
                           const struct lm_link *bulk, const uint8_t *session, uint32_t attempt);

/* Bytes per second for the bulk stream, 0 for no limit. Faults are never held back. */
void lm_page_client_limit(struct lm_page_client *client, uint64_t bytes_per_second);
/* LM_COMPRESS_AUTO, LM_COMPRESS_NONE or a level of zstd. */
void lm_page_client_compress(struct lm_page_client *client, int level);

/* End both connections, so that a call that writes on them in another thread returns. */
void lm_page_client_hang_up(struct lm_page_client *client);

/* LM_CLIENT_..., and the cause of the last loss. */
struct lm_status *lm_page_client_status(struct lm_page_client *client);
/* cffi: end */

struct lm_page_client {
    struct lm_page_store *store;
    struct lm_client_statistics *statistics;
    struct lm_client_statistics own_statistics;
    struct lm_status status;
    struct lm_yield yield;
    struct lm_bucket bucket;
    struct lm_pace pace;
    _Atomic bool stop;

    struct lm_channel fault, bulk;
    struct lm_page_sender fault_sender, bulk_sender;
    pthread_t fault_thread, bulk_thread;
    bool threads;

    pthread_mutex_t bulk_lock; /* one answer or one run of a push at a time */
    unsigned char *bulk_buffer, *push_buffer;
    struct lm_push_memory memory;
};

#endif
