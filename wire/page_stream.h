/*
 * The page stream, version 1: what travels on the FAULT and BULK channels.
 *
 *     destination                                         source
 *     REQUEST fault {space, address, id}  ----------->    (FAULT channel)
 *                 <-----------------  FRAME raw | zstd | zero | absent | poison {the page; LAST}
 *                 <-----------------  FRAMEs of its neighbours, when more than one page was requested:
 *                                     the page of the fault goes first and alone, the last bears LAST
 *     REQUEST run {space, address, pages} --------->      (BULK channel, several under way)
 *                 <-----------------  FRAMEs that cover the run exactly, the last one bears LAST
 *     REQUEST map {space, address, pages} --------->      which of these pages exist?
 *                 <-----------------  FRAMEs absent for those that do not; END {id; LAST}
 *     REQUEST ping {id} ----------------------->      (both channels, where nothing comes; before the freeze too)
 *                 <-----------------  FRAME pong {id}, which also comes by itself while the source takes its time
 *                 <-----------------  FRAMEs of a push (not requested), then END {push id}; in a push also
 *                                     DISCARD (what was pushed there has changed: request it again) and
 *                                     GONE (it is zero now), both without payload
 *
 * Poison is a page that the source's kernel lets nobody read: a guard (MADV_GUARD_INSTALL), or broken memory. Whoever
 * touches it gets a signal, there as here; it ends nothing else.
 *
 * A space is a number for something with addresses and pages: a process's memory (0, 1, ...), or an object
 * that is reached by a descriptor (a memfd: from LM_FIRST_OBJECT on; its addresses are offsets). Requests and
 * frames are 32 bytes, little endian, followed for raw and zstd by `length` bytes of payload:
 *
 *     offset  request   frame
 *     0  u8   kind      kind      0 is invalid
 *     1  u8   version   version   1; another one is refused
 *     2  u8   flags     flags
 *     3  u8   0         0
 *     4  u32  space     space
 *     8  u64  address   address   a multiple of 4096, below LM_ADDRESS_END
 *     16 u32  pages     pages     how many pages of 4096 bytes
 *     20 u32  reach     length    reach: so many pages further than requested may an absent answer go
 *     24 u32  id        id        not 0 in requests; of the request that is answered; of the push
 *     28 u32  check     check     mixes the 28 bytes before it: a torn or foreign stream is noticed at once
 *
 * A path can be cut without either end's kernel noticing: a relay or tunnel on it keeps both connections alive. So each side
 * counts looks of LM_LOOK_MS in which nothing has come, and gives the connection up after LM_SILENT_LOOKS of them. At the
 * destination a ping goes out in each such look. At the source that counts on FAULT alone, once there was a ping: its
 * peer's thread sends one in each look. Time in which a side was stopped itself is one look.
 *
 * Pages are always 4096 bytes, whatever they are made of on either host. All lengths are bounded here, before
 * anybody allocates. Nothing recovers from an error within a stream: the side that sees one drops the connection.
 */
#ifndef LM_WIRE_PAGE_STREAM_H
#define LM_WIRE_PAGE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_PAGE_STREAM_VERSION 1
#define LM_PAGE_SIZE 4096
#define LM_HEADER_SIZE 32
#define LM_FRAME_PAGES 64
#define LM_RUN_PAGES 256
#define LM_FAULT_PAGES 64
#define LM_ADDRESS_END 0x100000000000000
#define LM_FIRST_OBJECT 0x40000000

#define LM_REQUEST_FAULT 1
#define LM_REQUEST_RUN 2
#define LM_REQUEST_MAP 3
#define LM_REQUEST_PING 4
#define LM_REQUEST_SHARED 1

#define LM_FRAME_RAW 1
#define LM_FRAME_ZSTD 2
#define LM_FRAME_ZERO 3
#define LM_FRAME_ABSENT 4
#define LM_FRAME_END 5
#define LM_FRAME_FAILED 6
#define LM_FRAME_DISCARD 7
#define LM_FRAME_GONE 8
#define LM_FRAME_POISON 9
#define LM_FRAME_PONG 10
#define LM_FRAME_LAST 1

#define LM_LOOK_MS 500
#define LM_SILENT_LOOKS 10

/* What the destination requests. LM_REQUEST_SHARED: the page tables of the process do not tell which pages exist.
 */
struct lm_request {
    uint8_t kind;
    uint8_t version;
    uint8_t flags;
    uint8_t zero;
    uint32_t space;
    uint64_t address;
    uint32_t pages;
    uint32_t reach;
    uint32_t id;
    uint32_t check;
};

/* What the source sends. LM_FRAME_FAILED ends everything: the memory cannot be read; `length` is the errno.
 */
struct lm_frame {
    uint8_t kind;
    uint8_t version;
    uint8_t flags;
    uint8_t zero;
    uint32_t space;
    uint64_t address;
    uint32_t pages;
    uint32_t length;
    uint32_t id;
    uint32_t check;
};

/* Fill in version and check. */
void lm_request_seal(struct lm_request *request);
void lm_frame_seal(struct lm_frame *frame);

/* Returns 0, -EPROTONOSUPPORT for another version, or -EPROTO for what breaks the layout above. */
int lm_request_check(const struct lm_request *request);
int lm_frame_check(const struct lm_frame *frame);
/* cffi: end */

/* A ping, sealed, and a pong. */
struct lm_request lm_request_ping(void);
struct lm_frame lm_frame_pong(void);

/* Bytes follow this header. */
static inline uint32_t lm_frame_payload(const struct lm_frame *frame) {
    return frame->kind == LM_FRAME_RAW || frame->kind == LM_FRAME_ZSTD ? frame->length : 0;
}

/* Bytes in, frames out; without I/O. Bytes are put at lm_inbox_room, told by lm_inbox_filled, and taken frame
 * by frame. */
struct lm_inbox {
    unsigned char *buffer;
    size_t size;
    size_t begin; /* first byte not taken yet */
    size_t end;   /* after the last byte that is there */
};

/* `size` is at least one whole frame. */
int lm_inbox_init(struct lm_inbox *inbox, size_t size);
void lm_inbox_deinit(struct lm_inbox *inbox);

/* Where the next bytes go, and how many at most; never zero after lm_inbox_next said -EAGAIN. */
void *lm_inbox_room(struct lm_inbox *inbox, size_t *size);
void lm_inbox_filled(struct lm_inbox *inbox, size_t count);

/* The next whole frame; its payload stays valid until lm_inbox_room is called. Returns 0, -EAGAIN when bytes
 * are missing, or what lm_frame_check says. */
int lm_inbox_next(struct lm_inbox *inbox, struct lm_frame *frame, const void **payload);
/* The bytes that are there and not taken yet. */
size_t lm_inbox_held(const struct lm_inbox *inbox);

#endif
