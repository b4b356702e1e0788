#ifndef LM_WIRE_VALUES_H
#define LM_WIRE_VALUES_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* How many values one MessagePack value consists of, itself and map keys included: what bounds the memory that it can
 * become. It is told without any memory, and no further than `most` + 1. -EPROTO for bytes that are not exactly one
 * value, or that hold an extension, of which we have none. */
int64_t lm_count_values(const void *data, size_t length, uint64_t most);
/* cffi: end */

#endif
