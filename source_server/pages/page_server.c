#define _GNU_SOURCE
#include "kernel/urgency.h"
#include "source_server/pages/serving.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct lm_page_reader *lm_server_space(struct lm_page_server *server, uint32_t space) {
    int spaces = atomic_load_explicit(&server->space_count, memory_order_acquire);
    for (int i = 0; i < spaces; i++)
        if (server->spaces[i]->space == space)
            return server->spaces[i];
    return NULL;
}

void lm_server_set_state(struct lm_page_server *server, int state, const char *format, ...) {
    va_list arguments;
    uint64_t one = 1;
    pthread_mutex_lock(&server->lock);
    /* The first cause is the cause; the other thread only notices that the connections have been ended. */
    if (state == LM_SERVER_CONNECTED || server->state == LM_SERVER_CONNECTED) {
        server->state = state;
        va_start(arguments, format);
        vsnprintf(server->cause, sizeof server->cause, format, arguments);
        va_end(arguments);
        pthread_cond_broadcast(&server->changed);
        if (write(server->event, &one, sizeof one) < 0)
            server->event = server->event; /* full means readable, which is what is wanted */
    }
    pthread_mutex_unlock(&server->lock);
}

/* The connections are of no use any more: end both, so that the other thread and the peer notice. */
static void drop(struct lm_page_server *server, const char *which, int error) {
    if (error == -EACCES)
        lm_server_set_state(server, LM_SERVER_REFUSED,
                            "a request on the %s connection comes before the freeze", which);
    else if (error == -EPROTO || error == -EPROTONOSUPPORT)
        lm_server_set_state(server, LM_SERVER_REFUSED,
                            "a request on the %s connection breaks the page stream's %s", which,
                            error == -EPROTO ? "rules" : "version");
    else
        lm_server_set_state(server, LM_SERVER_LOST, "the %s connection: %s", which,
                            error == -EPIPE ? "closed by the peer" : strerror(-error));
    lm_channel_shutdown(&server->fault);
    lm_channel_shutdown(&server->bulk);
}

static void *fault_main(void *argument) {
    struct lm_page_server *server = argument;
    unsigned char *buffer = aligned_alloc(LM_PAGE_SIZE, LM_FAULT_PAGES * LM_PAGE_SIZE);
    struct lm_request requests[64];
    size_t held = 0;
    int error = buffer ? 0 : -ENOMEM;
    /* Somebody waits for every answer of this thread; where it is allowed it goes before others. */
    lm_urgency_first();
    while (!error) {
        ssize_t got = lm_channel_read(&server->fault, (char *)requests + held, sizeof requests - held, true);
        if (got < 0) {
            error = (int)got;
            break;
        }
        held += (size_t)got;
        size_t whole = held / sizeof *requests;
        for (size_t i = 0; i < whole && !error; i++) {
            error = lm_request_check(&requests[i]);
            if (!error)
                error = requests[i].kind == LM_REQUEST_FAULT
                            ? lm_server_answer_fault(server, &requests[i], buffer)
                            : -EPROTO;
        }
        held -= whole * sizeof *requests;
        memmove(requests, requests + whole, held);
    }
    drop(server, "fault", error);
    free(buffer);
    return NULL;
}

static void *bulk_main(void *argument) {
    struct lm_page_server *server = argument;
    int error = 0;
    lm_urgency_last();
    while (!error) {
        struct lm_request request;
        error = lm_channel_read_exact(&server->bulk, &request, sizeof request);
        if (!error)
            error = lm_request_check(&request);
        if (!error)
            error = lm_server_answer_bulk(server, &request);
    }
    drop(server, "bulk", error);
    return NULL;
}

void lm_page_server_hang_up(struct lm_page_server *server) {
    lm_channel_shutdown(&server->fault);
    lm_channel_shutdown(&server->bulk);
}

static void end_threads(struct lm_page_server *server) {
    atomic_store(&server->stop, true);
    lm_page_server_hang_up(server);
    if (server->threads) {
        pthread_join(server->fault_thread, NULL);
        pthread_join(server->bulk_thread, NULL);
    }
    server->threads = false;
    lm_channel_deinit(&server->fault);
    lm_channel_deinit(&server->bulk);
    atomic_store(&server->stop, false);
}

static int start_threads(struct lm_page_server *server) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&server->fault_thread, NULL, fault_main, server);
    if (!error) {
        error = pthread_create(&server->bulk_thread, NULL, bulk_main, server);
        if (error) {
            lm_channel_shutdown(&server->fault);
            pthread_join(server->fault_thread, NULL);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return -error;
    pthread_setname_np(server->fault_thread, "lm-fault");
    pthread_setname_np(server->bulk_thread, "lm-bulk");
    server->threads = true;
    return 0;
}

int lm_page_server_connect(struct lm_page_server *server, int fault_fd, int bulk_fd, const uint8_t *session,
                           uint32_t attempt) {
    end_threads(server);
    int error = lm_channel_init(&server->fault, fault_fd, LM_ROLE_FAULT, session, attempt);
    if (!error)
        error = lm_channel_init(&server->bulk, bulk_fd, LM_ROLE_BULK, session, attempt);
    if (!error) {
        lm_server_set_state(server, LM_SERVER_CONNECTED, "%s", "");
        error = start_threads(server);
    }
    if (error)
        lm_server_set_state(server, LM_SERVER_LOST, "no threads: %s", strerror(-error));
    return error;
}

static int add_space(struct lm_page_server *server, struct lm_page_reader *reader) {
    int error = 0;
    pthread_mutex_lock(&server->lock);
    int spaces = atomic_load(&server->space_count);
    if (lm_server_space(server, reader->space))
        error = -EEXIST;
    else if (spaces == LM_SERVER_SPACES)
        error = -ENOSPC;
    else {
        server->spaces[spaces] = reader;
        atomic_store_explicit(&server->space_count, spaces + 1, memory_order_release);
    }
    pthread_mutex_unlock(&server->lock);
    if (error) {
        lm_page_reader_deinit(reader);
        free(reader);
    }
    return error;
}

int lm_page_server_add_process(struct lm_page_server *server, uint32_t space, int pid) {
    struct lm_page_reader *reader = malloc(sizeof *reader);
    int error = reader ? lm_page_reader_init_process(reader, space, pid) : -ENOMEM;
    if (error) {
        free(reader);
        return error;
    }
    return add_space(server, reader);
}

int lm_page_server_add_object(struct lm_page_server *server, uint32_t space, int fd) {
    struct lm_page_reader *reader = malloc(sizeof *reader);
    int error = reader ? lm_page_reader_init_object(reader, space, fd) : -ENOMEM;
    if (error) {
        free(reader);
        return error;
    }
    return add_space(server, reader);
}

struct lm_page_server *lm_page_server_create(struct lm_server_statistics *statistics) {
    struct lm_page_server *server = calloc(1, sizeof *server);
    pthread_condattr_t clock;
    if (!server)
        return NULL;
    server->statistics = statistics ? statistics : &server->own_statistics;
    server->fault.fd = server->bulk.fd = -1;
    lm_pace_init(&server->pace);
    pthread_mutex_init(&server->lock, NULL);
    pthread_mutex_init(&server->bulk_lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &clock);
    server->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->bulk_buffer = aligned_alloc(LM_PAGE_SIZE, LM_RUN_PAGES * LM_PAGE_SIZE);
    server->push_buffer = aligned_alloc(LM_PAGE_SIZE, LM_RUN_PAGES * LM_PAGE_SIZE);
    int error = server->event < 0 || !server->bulk_buffer || !server->push_buffer;
    error |= lm_page_sender_init(&server->fault_sender, LM_FAULT_PAGES);
    error |= lm_page_sender_init(&server->bulk_sender, LM_RUN_PAGES);
    error |= lm_push_memory_init(&server->memory);
    server->fault_sender.channel = &server->fault;
    server->bulk_sender.channel = &server->bulk;
    server->bulk_sender.bucket = &server->bucket;
    server->fault_sender.pace = server->bulk_sender.pace = &server->pace;
    server->fault_sender.statistics = server->bulk_sender.statistics = server->statistics;
    server->fault_sender.stop = server->bulk_sender.stop = &server->stop;
    if (error) {
        lm_page_server_destroy(server);
        return NULL;
    }
    return server;
}

void lm_page_server_destroy(struct lm_page_server *server) {
    if (!server)
        return;
    end_threads(server);
    for (int i = 0; i < atomic_load(&server->space_count); i++) {
        lm_page_reader_deinit(server->spaces[i]);
        free(server->spaces[i]);
    }
    lm_page_sender_deinit(&server->fault_sender);
    lm_page_sender_deinit(&server->bulk_sender);
    lm_push_memory_deinit(&server->memory);
    free(server->bulk_buffer);
    free(server->push_buffer);
    if (server->event >= 0)
        close(server->event);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->bulk_lock);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

void lm_page_server_answer(struct lm_page_server *server, int answering) {
    atomic_store(&server->answering, answering != 0);
}

void lm_page_server_limit(struct lm_page_server *server, uint64_t bytes_per_second) {
    atomic_store(&server->bucket.rate, bytes_per_second);
}

void lm_page_server_compress(struct lm_page_server *server, int level) {
    int most = ZSTD_maxCLevel();
    atomic_store(&server->pace.policy, level > most ? most : level);
}

int lm_page_server_state(struct lm_page_server *server) {
    return lm_page_server_wait(server, -1, 0);
}

int lm_page_server_wait(struct lm_page_server *server, int state, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&server->lock);
    int error = 0;
    while (server->state == state && !error)
        error = timeout_ms < 0 ? pthread_cond_wait(&server->changed, &server->lock)
                               : pthread_cond_timedwait(&server->changed, &server->lock, &until);
    int now = server->state;
    pthread_mutex_unlock(&server->lock);
    return now;
}

int lm_page_server_event(struct lm_page_server *server) {
    return server->event;
}

int lm_page_server_cause(struct lm_page_server *server, char *buffer, size_t size) {
    pthread_mutex_lock(&server->lock);
    int length = snprintf(buffer, size, "%s", server->cause);
    pthread_mutex_unlock(&server->lock);
    return length;
}
