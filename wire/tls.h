/*
 * TLS 1.3 over a connected stream socket, by libssl.
 *
 * Both sides know a key beforehand, an external PSK with a fresh Diffie-Hellman exchange (RFC 8446, psk_dhe_ke), or both
 * have certificates that one authority has signed. There is one cipher (AES-128-GCM with SHA-256) and one group (X25519),
 * no ticket for another session, no early data and no earlier version.
 *
 * An SSL object allows one thread at a time, and a connection has one that reads beside one that writes. So each call
 * takes the session's lock, nothing in it waits (MSG_DONTWAIT), and whoever has to wait does so with poll(2) outside. Each
 * record is one call, so that neither thread keeps the other out for longer than a record takes.
 *
 * All return 0, or a number of bytes, or -errno: -EAGAIN when poll(2) has to show something first, -EPIPE when the peer has
 * closed, -EBADMSG when what came was not what the peer has sent, -EACCES when the peer does not have the key or a
 * certificate that counts, -EPROTO when it does not speak TLS 1.3.
 */
#ifndef LM_WIRE_TLS_H
#define LM_WIRE_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* cffi: begin */
#define LM_TLS_IDENTITY_BYTES 16
#define LM_TLS_KEY_BYTES 32
#define LM_TLS_RECORD_BYTES 16384

struct lm_tls_context;
struct lm_tls;

/* What the sessions of one side have in common: with names of PEM files, a certificate with its chain, its key, and who
 * must have signed the peer's; with three NULLs none. -EINVAL for files that are not that, or do not belong together. */
int lm_tls_context_create(const char *certificate, const char *key, const char *authority,
                          struct lm_tls_context **context);
void lm_tls_context_destroy(struct lm_tls_context *context);

/* A session over a duplicate of `fd`. `identity` says in clear which key is meant. The context may go before the session. */
int lm_tls_create(struct lm_tls_context *context, int fd, bool listening, const uint8_t *identity,
                  const uint8_t *key, struct lm_tls **tls);
/* Sessions are counted: whoever holds one may share it, and everybody gives back what he holds. NULL is no session. */
void lm_tls_put(struct lm_tls *tls);

/* Go on with the handshake. Who connects takes nothing in the first time, so that he can look first whether it is TLS that
 * he is answered with. */
int lm_tls_handshake(struct lm_tls *tls);

/* 32 bytes that only the two ends of this session know, and no other session has (RFC 8446, 7.5). */
int lm_tls_export(struct lm_tls *tls, uint8_t *bytes);

/* Read what is there of one record, at most `size` bytes. */
ssize_t lm_tls_read(struct lm_tls *tls, void *buffer, size_t size);
/* Write at most one record of what is to be written; `more`: more follows at once. After -EAGAIN the same bytes have to be
 * written next. */
ssize_t lm_tls_write(struct lm_tls *tls, const void *buffer, size_t size, bool more);
/* Bytes of a record that was taken from the socket and not read yet. For the thread that reads. */
size_t lm_tls_pending(const struct lm_tls *tls);
/* cffi: end */

struct lm_tls *lm_tls_get(struct lm_tls *tls);

/* For records (wire/records.h), which go on where the session stops. Whether this is the side that listened; and bytes
 * for keys of one side's records, which only the two ends of this session know, others for each `epoch`. */
bool lm_tls_listens(const struct lm_tls *tls);
int lm_tls_keys(struct lm_tls *tls, bool listeners, uint64_t epoch, uint8_t *bytes, size_t size);
/* Stop: reading, writing, and this, give -EALREADY from now on. What the peer sends after its last record is still in the
 * socket. -EPROTO before the end of the handshake, and when a record was not read as a whole. */
int lm_tls_hand_over(struct lm_tls *tls);

#endif
