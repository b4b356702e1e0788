/*
 * The store: the spaces of a migration and a reader for each. It knows nothing of those who want pages: any number of
 * clients (client.h) may read from it at once.
 *
 * Spaces are only ever added, by any thread and at any time; a store is destroyed after its clients.
 */
#ifndef LM_PAGES_STORE_H
#define LM_PAGES_STORE_H

#include "source_server/pages/readers.h"

/* cffi: begin */
struct lm_page_store;

/* Returns NULL when there is no memory. */
struct lm_page_store *lm_page_store_create(void);
void lm_page_store_destroy(struct lm_page_store *store);

/* Give out `space` from the memory of `pid`. Returns 0 or -errno; -EEXIST when the number is taken. */
int lm_page_store_add_process(struct lm_page_store *store, uint32_t space, int pid);
/* Give out `space` (LM_FIRST_OBJECT or more) from a duplicate of the descriptor, by offset. */
int lm_page_store_add_object(struct lm_page_store *store, uint32_t space, int fd);

/* Answer requests from now on (1), for all processes hold still, or no longer (0), as at the beginning. A request that
 * comes while the store is not open ends its client's connections. */
void lm_page_store_open(struct lm_page_store *store, int open);
/* cffi: end */

bool lm_page_store_is_open(const struct lm_page_store *store);
/* NULL when there is no such space. */
const struct lm_page_reader *lm_page_store_find(const struct lm_page_store *store, uint32_t space);

#endif
