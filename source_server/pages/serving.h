/* What the parts of the page server share; nobody else includes it. */
#ifndef LM_SOURCE_SERVING_H
#define LM_SOURCE_SERVING_H

#include "source_server/pages/page_reader.h"
#include "source_server/pages/page_server.h"
#include "source_server/pages/push_memory.h"

#include <pthread.h>
#include <stdatomic.h>

enum { LM_SERVER_SPACES = 1024 };

struct lm_page_server {
    struct lm_server_statistics *statistics;
    struct lm_server_statistics own_statistics;
    struct lm_bucket bucket;
    struct lm_pace pace;
    _Atomic bool stop;
    int event;

    pthread_mutex_t lock; /* guards state, cause and the adding of spaces */
    pthread_cond_t changed;
    int state;
    char cause[160];

    /* Spaces are only ever added; the count is published after the reader is complete. */
    struct lm_page_reader *spaces[LM_SERVER_SPACES];
    _Atomic int space_count;

    _Atomic bool answering;
    struct lm_channel fault, bulk;
    struct lm_page_sender fault_sender, bulk_sender;
    pthread_t fault_thread, bulk_thread;
    bool threads;

    pthread_mutex_t bulk_lock; /* one answer or one run of a push at a time */
    unsigned char *bulk_buffer, *push_buffer;
    struct lm_push_memory memory;
};

/* NULL when there is no such space. */
struct lm_page_reader *lm_server_space(struct lm_page_server *server, uint32_t space);

/* Answer one request, checked already, on the channel it came by. Returns 0 or -errno, after which the
 * connection is of no use: -EPROTO for what cannot be asked there, -EACCES for what cannot be asked yet. `buffer` has room for LM_FAULT_PAGES. */
int lm_server_answer_fault(struct lm_page_server *server, const struct lm_request *request,
                           unsigned char *buffer);
int lm_server_answer_bulk(struct lm_page_server *server, const struct lm_request *request);

/* Gather the pages from `at` on as frames of the bulk sender, which refer to `content` until they are
 * flushed; lock held. Returns 0 or -errno. */
int lm_server_send_stretch(struct lm_page_server *server, uint64_t at, uint32_t pages,
                           const unsigned char *content);

/* A failure of the memory or the connection. Only the first is kept. */
void lm_server_set_state(struct lm_page_server *server, int state, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
