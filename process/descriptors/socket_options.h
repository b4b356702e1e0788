#ifndef LM_PROCESS_SOCKET_OPTIONS_H
#define LM_PROCESS_SOCKET_OPTIONS_H
/* Every option that a socket keeps, from one table: read at the source, set at the destination, or refused. */
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* A multicast group that somebody on the source has joined: `family` AF_INET or AF_INET6, the interface's number. */
struct lm_group {
    int family;
    unsigned int interface;
    unsigned char address[16];
};
/* Writes the options of a socket into `room`, as records in the order in which they are to be set, and returns how many
 * bytes they take; -ENOSPC if there is no room. `usual` are those of a new socket. Which of the `groups` the socket has
 * joined is found out too. */
long lm_read_socket_options(int number, const char *usual, size_t usual_length, const struct lm_group *groups,
                            unsigned int group_count, char *room, size_t size);
/* Which of the options that were read cannot be moved: its name, or NULL. `*at` is where to begin, and where to go on. */
const char *lm_refused_socket_option(const char *options, size_t length, size_t *at);
/* A connection in repair, and the options that were read of it before. */
struct lm_described {
    const char *options;
    size_t length;
    int number;
    int changed;
};
/* Tells which of many such connections, all of one kind, have other options than before, but for those that repair
 * changes. `usual` as above. 0 or -errno. */
int lm_compare_in_repair(struct lm_described *those, size_t count, const char *usual, size_t usual_length);
/* The value of an option that is a number, 0 if no record has it. */
int lm_recorded_option(const char *options, size_t length, int level, int number);
/* Gives a socket the options; those of `before` (may be empty) that can be taken back, and are not among them, are
 * taken back. Filters alone, or all but filters. Where setting one fails, `*failed` is its name. Returns 0 or
 * -errno, -EPROTO for what is no record. */
int lm_set_socket_options(int number, const char *before, size_t before_length, const char *options,
                          size_t length, int filters, const char **failed);
/* cffi: end */
#endif
