/*
 * The observer: a program that makes itself a random process, writes down all that it can see of itself, and looks
 * again and again whether it is still so. See observer.c.
 */
#ifndef OBSERVER_H
#define OBSERVER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WORKERS 5
#define FIRST_DESCRIPTOR 20
#define DESCRIPTORS 48
#define ALL_DESCRIPTORS                                                                                      \
    (DESCRIPTORS + 40) /* those of timers and mapped files too, which come behind the others */

/* Where random numbers come from: each call has a beginning of its own, so that a call does the same whatever other
 * calls are left out. */
struct draw {
    uint64_t state;
};

uint64_t draw(struct draw *from, uint64_t below);

/* One of the values. */
#define DRAW_OF(from, values) ((values)[draw(from, COUNT(values))])

/* Lines "key: value", or "key~ value early late" for a number that may come to lie so much lower or higher. */
struct report {
    char *text;
    size_t length, size;
};

__attribute__((format(printf, 3, 4))) void say(struct report *report, const char *key, const char *format,
                                               ...);
void say_near(struct report *report, const char *key, int64_t value, int64_t early, int64_t late);
void say_bytes(struct report *report, const char *key, const void *bytes, size_t length);

/* The lines of a file of /proc that begin with one of the words; all for a NULL. */
void say_lines(struct report *report, const char *key, const char *path, const char *const *words);

/* Writes down a call that was made, for whoever reads why two observations differ. */
__attribute__((format(printf, 1, 2))) void did(const char *format, ...);

/* A part of the process: how it is changed at random, and what is seen of it. `change` and `observe` run in the thread
 * that has it, or in the main thread for what belongs to the process. */
struct aspect {
    const char *name;
    bool of_thread;
    void (*change)(struct draw *from);
    void (*observe)(struct report *report);
};

extern const struct aspect *const attribute_aspects[],
    *const timer_aspects[], *const memory_aspects[], *const descriptor_aspects[], *const socket_aspects[],
                                                                                      *const filter_aspects[];

/* Is made after every change: it takes back what is not to be there. */
extern const struct aspect after_each;

/* The folder that was given to the program. */
const char *folder(void);

/* The number of the thread that asks, 0 for the main one. */
unsigned this_worker(void);

/* May something be drawn that makes the move be refused? */
bool may_be_refused(void);

/* May it be between its last snapshot and the freeze? */
bool is_being_moved(void);

/* Has it been moved, with all its memory? */
bool is_complete(void);

uint64_t now_of(int clock);

/* Puts a new descriptor at a number of its own, in place of what was there. -1 is taken for nothing. */
void put_descriptor(int made, int number);
int draw_descriptor(struct draw *from);

/* The signals that are blocked in every thread and wait to be counted at the end. */
#define FIRST_QUEUED 44
#define QUEUED 4

#endif
