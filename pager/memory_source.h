/*
 * Pages from memory of this process: the same answers as over a socket, without one. With it a test drives the pager
 * alone.
 */
#ifndef LM_PAGER_MEMORY_SOURCE_H
#define LM_PAGER_MEMORY_SOURCE_H

#include "pager/page_source.h"

/* cffi: begin */
/* The pages of `space` from address `start` on are `content`, `length` bytes, which must outlive the source; there are no
 * others. Returns 0 or -errno. */
int lm_memory_source_create(uint32_t space, uint64_t start, uint64_t length, const void *content,
                            struct lm_page_source **source);
/* cffi: end */

#endif
