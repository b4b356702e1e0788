#define _GNU_SOURCE
#include "source_server/pages/client.h"

#include "kernel/urgency.h"
#include "source_server/pages/answers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* The first cause counts; the other thread only notices that the connections have been ended. */
enum { ANY = ~0, SERVING = 1 << LM_CLIENT_CONNECTED };
static const uint32_t entered_from[] = {
    [LM_CLIENT_IDLE] = 0,          [LM_CLIENT_CONNECTED] = (uint32_t)ANY, [LM_CLIENT_LOST] = SERVING,
    [LM_CLIENT_DROPPED] = SERVING, [LM_CLIENT_FAILED] = SERVING,
};

/* The connections are of no use any more: end both, so that the other thread and the peer notice. */
static void drop(struct lm_page_client *client, const char *which, int error) {
    if (error == -EACCES)
        lm_status_set(&client->status, LM_CLIENT_DROPPED,
                      "a request on the %s connection comes before the freeze", which);
    else if (error == -EPROTO || error == -EPROTONOSUPPORT)
        lm_status_set(&client->status, LM_CLIENT_DROPPED,
                      "a request on the %s connection breaks the page stream's %s", which,
                      error == -EPROTO ? "rules" : "version");
    else
        lm_status_set(&client->status, LM_CLIENT_LOST, "the %s connection: %s", which,
                      error == -EPIPE       ? "closed by the peer"
                      : error == -ETIMEDOUT ? "the peer has said nothing for some seconds"
                                            : lm_channel_cause(error));
    lm_channel_shutdown(&client->fault);
    lm_channel_shutdown(&client->bulk);
}

/* What an answer means for the connection. The peer is told of memory that cannot be read, and decides. */
static int settle(struct lm_page_client *client, struct lm_page_sender *sender,
                  const struct lm_request *request, struct lm_answered answered) {
    if (!answered.unreadable)
        return answered.error;
    lm_status_set(&client->status, LM_CLIENT_FAILED, "pages from %#llx cannot be read: %s",
                  (unsigned long long)request->address, strerror(-answered.error));
    return lm_page_sender_failed(sender, answered.error);
}

static int answer_bulk(struct lm_page_client *client, const struct lm_request *request) {
    pthread_mutex_lock(&client->bulk_lock);
    if (request->kind == LM_REQUEST_PING) {
        int error = lm_page_sender_pong(&client->bulk_sender);
        pthread_mutex_unlock(&client->bulk_lock);
        return error;
    }
    struct lm_answered answered =
        lm_answer_bulk(client->store, &client->bulk_sender, request, client->bulk_buffer);
    int error = settle(client, &client->bulk_sender, request, answered);
    pthread_mutex_unlock(&client->bulk_lock);
    return error;
}

static int answer_fault(struct lm_page_client *client, const struct lm_request *request,
                        unsigned char *buffer) {
    if (request->kind == LM_REQUEST_PING)
        return lm_page_sender_pong(&client->fault_sender);
    lm_yield_to_fault(&client->yield, (uint64_t)request->pages * LM_PAGE_SIZE);
    return settle(client, &client->fault_sender, request,
                  lm_answer_fault(client->store, &client->fault_sender, request, buffer));
}

static void *fault_main(void *argument) {
    struct lm_page_client *client = argument;
    unsigned char *buffer = aligned_alloc(LM_PAGE_SIZE, LM_FAULT_PAGES * LM_PAGE_SIZE);
    struct lm_request requests[64];
    size_t held = 0;
    int silent = 0; /* looks in which nothing came, since there was a ping */
    bool pinged = false;
    int error = buffer ? 0 : -ENOMEM;
    /* Somebody waits for every answer of this thread, so it runs before others where that is allowed. */
    lm_urgency_first();
    while (!error) {
        error = lm_channel_wait(&client->fault, LM_LOOK_MS);
        silent = error == -EAGAIN && pinged ? silent + 1 : 0;
        if (error == -EAGAIN) {
            error = silent > LM_SILENT_LOOKS ? -ETIMEDOUT : 0;
            continue;
        }
        ssize_t got =
            error ? error
                  : lm_channel_read(&client->fault, (char *)requests + held, sizeof requests - held, false);
        if (got == -EAGAIN)
            continue;
        if (got < 0) {
            error = (int)got;
            break;
        }
        held += (size_t)got;
        size_t whole = held / sizeof *requests;
        for (size_t i = 0; i < whole && !error; i++) {
            error = lm_request_check(&requests[i]);
            pinged |= requests[i].kind == LM_REQUEST_PING;
            if (!error)
                error = answer_fault(client, &requests[i], buffer);
        }
        held -= whole * sizeof *requests;
        memmove(requests, requests + whole, held);
    }
    drop(client, "fault", error);
    free(buffer);
    return NULL;
}

static void *bulk_main(void *argument) {
    struct lm_page_client *client = argument;
    int error = 0;
    lm_urgency_last();
    while (!error) {
        struct lm_request request;
        error = lm_channel_read_exact(&client->bulk, &request, sizeof request);
        if (!error)
            error = lm_request_check(&request);
        if (!error)
            error = answer_bulk(client, &request);
    }
    drop(client, "bulk", error);
    return NULL;
}

void lm_page_client_hang_up(struct lm_page_client *client) {
    lm_channel_shutdown(&client->fault);
    lm_channel_shutdown(&client->bulk);
}

static void end_threads(struct lm_page_client *client) {
    atomic_store(&client->stop, true);
    lm_page_client_hang_up(client);
    if (client->threads) {
        pthread_join(client->fault_thread, NULL);
        pthread_join(client->bulk_thread, NULL);
    }
    client->threads = false;
    lm_channel_deinit(&client->fault);
    lm_channel_deinit(&client->bulk);
    atomic_store(&client->stop, false);
}

static int start_threads(struct lm_page_client *client) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&client->fault_thread, NULL, fault_main, client);
    if (!error) {
        error = pthread_create(&client->bulk_thread, NULL, bulk_main, client);
        if (error) {
            lm_channel_shutdown(&client->fault);
            pthread_join(client->fault_thread, NULL);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return -error;
    pthread_setname_np(client->fault_thread, "lm-fault");
    pthread_setname_np(client->bulk_thread, "lm-bulk");
    client->threads = true;
    return 0;
}

int lm_page_client_connect(struct lm_page_client *client, const struct lm_link *fault,
                           const struct lm_link *bulk, const uint8_t *session, uint32_t attempt) {
    end_threads(client);
    /* What was gathered for the last connections belongs to nothing. */
    lm_page_sender_drop(&client->fault_sender);
    lm_page_sender_drop(&client->bulk_sender);
    int error = lm_channel_init(&client->fault, fault, LM_ROLE_FAULT, session, attempt);
    if (!error)
        error = lm_channel_init(&client->bulk, bulk, LM_ROLE_BULK, session, attempt);
    lm_yield_restart(&client->yield);
    if (!error) {
        lm_status_set(&client->status, LM_CLIENT_CONNECTED, "%s", "");
        error = start_threads(client);
    }
    if (error)
        lm_status_set(&client->status, LM_CLIENT_LOST, "no threads: %s", strerror(-error));
    return error;
}

struct lm_page_client *lm_page_client_create(struct lm_page_store *store,
                                             struct lm_client_statistics *statistics) {
    struct lm_page_client *client = calloc(1, sizeof *client);
    if (!client)
        return NULL;
    client->store = store;
    client->statistics = statistics ? statistics : &client->own_statistics;
    client->fault.fd = client->bulk.fd = -1;
    lm_pace_init(&client->pace);
    pthread_mutex_init(&client->bulk_lock, NULL);
    client->bulk_buffer = aligned_alloc(LM_PAGE_SIZE, LM_RUN_PAGES * LM_PAGE_SIZE);
    client->push_buffer = aligned_alloc(LM_PAGE_SIZE, LM_RUN_PAGES * LM_PAGE_SIZE);
    int error = !client->bulk_buffer || !client->push_buffer;
    error |= lm_status_init(&client->status, entered_from, LM_CLIENT_IDLE);
    error |= lm_page_sender_init(&client->fault_sender, LM_FAULT_PAGES);
    error |= lm_page_sender_init(&client->bulk_sender, LM_RUN_PAGES);
    error |= lm_push_memory_init(&client->memory);
    client->fault_sender.channel = &client->fault;
    client->bulk_sender.channel = &client->bulk;
    client->bulk_sender.bucket = &client->bucket;
    client->bulk_sender.yield = &client->yield;
    lm_yield_init(&client->yield, &client->bulk);
    client->fault_sender.pace = client->bulk_sender.pace = &client->pace;
    client->fault_sender.statistics = client->bulk_sender.statistics = client->statistics;
    client->fault_sender.stop = client->bulk_sender.stop = &client->stop;
    if (error) {
        lm_page_client_destroy(client);
        return NULL;
    }
    return client;
}

void lm_page_client_destroy(struct lm_page_client *client) {
    if (!client)
        return;
    end_threads(client);
    lm_page_sender_deinit(&client->fault_sender);
    lm_page_sender_deinit(&client->bulk_sender);
    lm_push_memory_deinit(&client->memory);
    lm_status_deinit(&client->status);
    free(client->bulk_buffer);
    free(client->push_buffer);
    pthread_mutex_destroy(&client->bulk_lock);
    free(client);
}

void lm_page_client_limit(struct lm_page_client *client, uint64_t bytes_per_second) {
    atomic_store(&client->bucket.rate, bytes_per_second);
}

void lm_page_client_compress(struct lm_page_client *client, int level) {
    int most = ZSTD_maxCLevel();
    atomic_store(&client->pace.policy, level > most ? most : level);
}

struct lm_status *lm_page_client_status(struct lm_page_client *client) {
    return &client->status;
}
