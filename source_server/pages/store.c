#include "source_server/pages/store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPACES = 1024 };

struct lm_page_store {
    pthread_mutex_t lock; /* guards the adding */
    /* The count is published after the reader is complete. */
    struct lm_page_reader *readers[SPACES];
    _Atomic int count;
    _Atomic bool open;
};

struct lm_page_store *lm_page_store_create(void) {
    struct lm_page_store *store = calloc(1, sizeof *store);
    if (store)
        pthread_mutex_init(&store->lock, NULL);
    return store;
}

void lm_page_store_destroy(struct lm_page_store *store) {
    if (!store)
        return;
    for (int i = 0; i < atomic_load(&store->count); i++) {
        lm_page_reader_deinit(store->readers[i]);
        free(store->readers[i]);
    }
    pthread_mutex_destroy(&store->lock);
    free(store);
}

const struct lm_page_reader *lm_page_store_find(const struct lm_page_store *store, uint32_t space) {
    int count = atomic_load_explicit(&store->count, memory_order_acquire);
    for (int i = 0; i < count; i++)
        if (store->readers[i]->space == space)
            return store->readers[i];
    return NULL;
}

/* Takes the reader. */
static int add(struct lm_page_store *store, struct lm_page_reader *reader) {
    int error = 0;
    pthread_mutex_lock(&store->lock);
    int count = atomic_load(&store->count);
    if (lm_page_store_find(store, reader->space))
        error = -EEXIST;
    else if (count == SPACES)
        error = -ENOSPC;
    else {
        store->readers[count] = reader;
        atomic_store_explicit(&store->count, count + 1, memory_order_release);
    }
    pthread_mutex_unlock(&store->lock);
    if (error) {
        lm_page_reader_deinit(reader);
        free(reader);
    }
    return error;
}

int lm_page_store_add_process(struct lm_page_store *store, uint32_t space, int pid) {
    struct lm_page_reader *reader = malloc(sizeof *reader);
    int error = reader ? lm_page_reader_init_process(reader, space, pid) : -ENOMEM;
    if (error) {
        free(reader);
        return error;
    }
    return add(store, reader);
}

int lm_page_store_add_object(struct lm_page_store *store, uint32_t space, int fd) {
    struct lm_page_reader *reader = malloc(sizeof *reader);
    int error = reader ? lm_page_reader_init_object(reader, space, fd) : -ENOMEM;
    if (error) {
        free(reader);
        return error;
    }
    return add(store, reader);
}

void lm_page_store_open(struct lm_page_store *store, int open) {
    atomic_store(&store->open, open != 0);
}

bool lm_page_store_is_open(const struct lm_page_store *store) {
    return atomic_load(&store->open);
}
