/*
 * What the descriptors of another process show from outside, all of them in one pass: a frozen process waits for it, and
 * has thousands.
 */
#ifndef LM_PROCESS_DESCRIPTORS_SEEN_H
#define LM_PROCESS_DESCRIPTORS_SEEN_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* One descriptor: its number, and that of a duplicate in this process; where in the text its link (/proc/PID/fd) and its
 * fdinfo stand; device, inode and mode of what it stands for; who gets its signals (lm_get_owner), -1 as the type where
 * nobody can (O_PATH). All of one size, so that Python takes them at once. */
struct lm_descriptor_seen {
    int64_t number, duplicate, link, link_length, information, information_length, device, inode, mode,
        owner_type, owner, signal;
};
struct lm_descriptors_seen {
    struct lm_descriptor_seen *each;
    char *text;
    size_t count, text_length;
    int failed;
};
/* See every descriptor of process `pid`, for which `pidfd` stands. One that a process that runs closes meanwhile is left
 * out; of one that is `frozen` that is an error. 0, or -errno with nothing left open: `failed` is then the number of the
 * descriptor that could not be seen, -1 for all of them. */
int lm_descriptors_see(int pid, int pidfd, int frozen, struct lm_descriptors_seen *out);
/* Free what is in `seen`; the duplicates stay. */
void lm_descriptors_seen_free(struct lm_descriptors_seen *seen);
/* cffi: end */

#endif
