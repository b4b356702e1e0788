/* What is fuzzed in C: each takes bytes of a peer as its parser would, and aborts if a promise of the parser is broken. */
#ifndef LM_FUZZ_H
#define LM_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define PROMISE(holds)                                                                                       \
    do {                                                                                                     \
        if (!(holds))                                                                                        \
            abort();                                                                                         \
    } while (0)

/* A page stream in pieces, as the destination takes it in. */
int fuzz_frames(const uint8_t *data, size_t size);
/* Requests, as the source takes them in. */
int fuzz_requests(const uint8_t *data, size_t size);
/* Pages that are taken back, compared with a plain list of pages. */
int fuzz_discards(const uint8_t *data, size_t size);
/* The values of a control message, counted. */
int fuzz_values(const uint8_t *data, size_t size);
/* The text of /proc/PID/maps, in which names may be anything. */
int fuzz_maps(const uint8_t *data, size_t size);

#endif
