#ifndef LM_WIRE_SHA256_H
#define LM_WIRE_SHA256_H

#include <stddef.h>

enum { LM_SHA256_BYTES = 32 };

/* cffi: begin */
/* SHA-256 (FIPS 180-4) without memory of its own and without a library: for custodians, which have given up
 * their heap. `digest` takes 32 bytes. */
void lm_sha256(const void *data, size_t size, unsigned char *digest);
/* cffi: end */

#endif
