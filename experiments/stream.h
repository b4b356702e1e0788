/* Whole messages over a stream socket, for the floor's programs: an end of the connection ends the process.
 */
#ifndef EXPERIMENTS_STREAM_H
#define EXPERIMENTS_STREAM_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static inline void read_all(int fd, void *buffer, size_t size) {
    for (char *at = buffer; size;) {
        ssize_t count = recv(fd, at, size, 0);
        if (count <= 0)
            _exit(count ? 1 : 0);
        at += count;
        size -= (size_t)count;
    }
}

static inline void write_all(int fd, const void *buffer, size_t size) {
    for (const char *at = buffer; size;) {
        ssize_t count = send(fd, at, size, MSG_NOSIGNAL);
        if (count <= 0)
            _exit(1);
        at += count;
        size -= (size_t)count;
    }
}

#endif
