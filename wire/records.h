/*
 * Records: what the FAULT and BULK connections consist of once TLS's handshake is done (docs/security.md). Bytes in,
 * bytes out; without I/O.
 *
 *     u32  length of the text, 1 to LM_RECORD_BYTES, little endian; authenticated too
 *     the text, enciphered by AES-128-GCM
 *     16 bytes, the tag
 *
 * A record bears no number: the n-th of a direction is opened as the n-th, so that one that is changed, left out,
 * repeated, moved or turned back to its sender is not one. Keys come from the exporter of the TLS session (RFC 8446, 7.5),
 * others for each direction and for each 4,096 records of it, of 256 MiB at most. The nonce is the key's own 96 bits, over
 * which the record's number under that key lies (as in RFC 8446, 5.3).
 *
 * One thread may seal while another opens. All return 0, a number of bytes, or -errno.
 */
#ifndef LM_WIRE_RECORDS_H
#define LM_WIRE_RECORDS_H

#include "wire/tls.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* cffi: begin */
#define LM_RECORD_BYTES 65536
#define LM_RECORD_EXTRA 20
#define LM_RECORDS_OF_A_KEY 4096

struct lm_records;

/* Go on where TLS stopped: the session gives nothing and takes nothing itself any more, and no other records can be made
 * of it (-EALREADY), for they would use the same nonces. -EPROTO when TLS has something left that was not read. */
int lm_records_create(struct lm_tls *tls, struct lm_records **records);
/* NULL is no records. */
void lm_records_destroy(struct lm_records *records);

/* Seal what fits, and pass over it in the vector. Only what is sealed already can keep it from fitting. */
int lm_records_seal(struct lm_records *records, struct iovec **parts, int *count);
/* What is sealed and not sent yet; and so much of it has been sent. */
const void *lm_records_sealed(const struct lm_records *records, size_t *size);
void lm_records_sent(struct lm_records *records, size_t count);

/* Where the next bytes of the peer go, and how many at most. No more than belong to a read of `wanted` bytes, so
 * that whoever waits for a little is not kept waiting by what comes after it. */
void *lm_records_room(struct lm_records *records, size_t wanted, size_t *size);
void lm_records_filled(struct lm_records *records, size_t count);
/* The text of at most one record, or the rest of one. -EAGAIN when bytes are missing; -EBADMSG, from then on, when what came
 * is not what the peer has sealed, and nothing of the record may be used. */
ssize_t lm_records_open(struct lm_records *records, void *buffer, size_t size);
/* Whether `open` has something to give. */
bool lm_records_ready(const struct lm_records *records);
/* cffi: end */

/* Pass over so many bytes of the vector, and over empty parts. */
void lm_vector_advance(struct iovec **parts, int *count, size_t done);

#endif
