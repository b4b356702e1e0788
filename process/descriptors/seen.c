#define _GNU_SOURCE
#include "process/descriptors/seen.h"

#include "kernel/pidfd.h"
#include "process/descriptors/calls.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_AT_ONCE = 8192 };

/* What has room for how much so far. */
struct seeing {
    struct lm_descriptors_seen *out;
    size_t room, text_room;
    DIR *links;
    int informations;
    int pidfd;
};

static void close_seeing(struct seeing *seeing) {
    if (seeing->links != NULL)
        closedir(seeing->links);
    if (seeing->informations >= 0)
        close(seeing->informations);
}

static void close_descriptor(const int *number) {
    if (*number >= 0)
        close(*number);
}

/* Room for `more` bytes behind the text. */
static int make_text_room(struct seeing *seeing, size_t more) {
    char *grown = NULL;
    size_t room = seeing->text_room;

    if (seeing->out->text_length + more <= room)
        return 0;
    room = 2 * room + more;
    grown = realloc(seeing->out->text, room);
    if (grown == NULL)
        return -ENOMEM;
    seeing->out->text = grown;
    seeing->text_room = room;
    return 0;
}

static int read_link(struct seeing *seeing, const char *name, struct lm_descriptor_seen *one) {
    ssize_t length = 0;
    int error = make_text_room(seeing, PATH_MAX);

    if (error != 0)
        return error;
    one->link = (int64_t)seeing->out->text_length;
    length = readlinkat(dirfd(seeing->links), name, seeing->out->text + one->link, PATH_MAX);
    if (length < 0)
        return -errno;
    one->link_length = length;
    seeing->out->text_length += (size_t)length;
    return 0;
}

static int read_information(struct seeing *seeing, const char *name, struct lm_descriptor_seen *one) {
    __attribute__((cleanup(close_descriptor))) int file =
        openat(seeing->informations, name, O_RDONLY | O_CLOEXEC);

    if (file < 0)
        return -errno;
    one->information = (int64_t)seeing->out->text_length;
    /* Some reads end early: only an empty one is the end. */
    for (;;) {
        ssize_t length = 0;
        int error = make_text_room(seeing, TEXT_AT_ONCE);

        if (error != 0)
            return error;
        length = read(file, seeing->out->text + seeing->out->text_length, TEXT_AT_ONCE);
        if (length < 0)
            return -errno;
        if (length == 0)
            break;
        seeing->out->text_length += (size_t)length;
    }
    one->information_length = (int64_t)seeing->out->text_length - one->information;
    return 0;
}

static int take_duplicate(struct seeing *seeing, struct lm_descriptor_seen *one) {
    struct stat status;
    int owner[3];
    int duplicate = lm_pidfd_getfd(seeing->pidfd, (int)one->number);

    if (duplicate < 0)
        return duplicate;
    if (fstat(duplicate, &status) < 0) {
        int error = -errno;

        close(duplicate);
        return error;
    }
    one->duplicate = duplicate;
    one->device = (int64_t)status.st_dev;
    one->inode = (int64_t)status.st_ino;
    one->mode = status.st_mode;
    if (lm_get_owner(duplicate, owner) < 0) {
        one->owner_type = -1;
        return 0;
    }
    one->owner_type = owner[0];
    one->owner = owner[1];
    one->signal = owner[2];
    return 0;
}

static int see(struct seeing *seeing, const char *name) {
    struct lm_descriptor_seen one = {.number = atoi(name)};
    struct lm_descriptors_seen *out = seeing->out;
    int error = 0;

    if (out->count == seeing->room) {
        size_t room = 2 * seeing->room + 64;
        struct lm_descriptor_seen *grown = realloc(out->each, room * sizeof *grown);

        if (grown == NULL)
            return -ENOMEM;
        out->each = grown;
        seeing->room = room;
    }
    error = read_link(seeing, name, &one);
    if (error == 0)
        error = read_information(seeing, name, &one);
    if (error == 0)
        error = take_duplicate(seeing, &one);
    if (error == 0)
        out->each[out->count++] = one;
    return error;
}

static int see_all(struct seeing *seeing, int frozen) {
    for (;;) {
        const struct dirent *entry = NULL;
        int error = 0;

        errno = 0;
        entry = readdir(seeing->links);
        if (entry == NULL)
            return -errno;
        if (entry->d_name[0] == '.')
            continue;
        error = see(seeing, entry->d_name);
        if (error != 0 && (frozen || error == -EPERM || error == -EACCES || error == -ENOMEM)) {
            seeing->out->failed = atoi(entry->d_name);
            return error;
        }
    }
}

int lm_descriptors_see(int pid, int pidfd, int frozen, struct lm_descriptors_seen *out) {
    __attribute__((cleanup(close_seeing))) struct seeing seeing = {
        .out = out, .informations = -1, .pidfd = pidfd};
    char path[64];
    int error = 0;

    *out = (struct lm_descriptors_seen){.failed = -1};
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    seeing.links = opendir(path);
    if (seeing.links == NULL)
        return -errno;
    snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
    seeing.informations = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (seeing.informations < 0)
        return -errno;
    error = see_all(&seeing, frozen);
    if (error != 0) {
        for (size_t i = 0; i < out->count; i++)
            close((int)out->each[i].duplicate);
        lm_descriptors_seen_free(out);
    }
    return error;
}

void lm_descriptors_seen_free(struct lm_descriptors_seen *seen) {
    free(seen->each);
    free(seen->text);
    seen->each = NULL;
    seen->text = NULL;
    seen->count = seen->text_length = 0;
}
