/* What the observer sees, as lines of text. */
#include "observer.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST_FILE (1u << 18)

static void append(struct report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void append_arguments(struct report *report, const char *format, va_list arguments) {
    size_t room = report->size - report->length;
    int length = vsnprintf(report->text + report->length, room, format, arguments);
    if (length < 0 || (size_t)length >= room)
        _exit(3);
    report->length += (size_t)length;
}

static void append(struct report *report, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    append_arguments(report, format, arguments);
    va_end(arguments);
}

void say(struct report *report, const char *key, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    append(report, "%s: ", key);
    append_arguments(report, format, arguments);
    append(report, "\n");
    va_end(arguments);
}

void say_near(struct report *report, const char *key, int64_t value, int64_t early, int64_t late) {
    append(report, "%s~ %lld %lld %lld\n", key, (long long)value, (long long)early, (long long)late);
}

void say_bytes(struct report *report, const char *key, const void *bytes, size_t length) {
    const unsigned char *byte = bytes;
    append(report, "%s: ", key);
    for (size_t i = 0; i < length; i++)
        append(report, "%02x", byte[i]);
    append(report, "\n");
}

static bool is_wanted(const char *line, const char *const *words) {
    if (!words)
        return true;
    for (; *words; words++)
        if (strncmp(line, *words, strlen(*words)) == 0)
            return true;
    return false;
}

void say_lines(struct report *report, const char *key, const char *path, const char *const *words) {
    static __thread char text[LARGEST_FILE];
    size_t used = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        say(report, key, "%s", strerror(errno));
        return;
    }
    for (ssize_t got;
         used + 1 < sizeof(text) && (got = read(file, text + used, sizeof(text) - 1 - used)) > 0;)
        used += (size_t)got;
    close(file);
    text[used] = 0;
    unsigned number = 0;
    for (char *line = text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        if (is_wanted(line, words))
            append(report, "%s[%u]: %s\n", key, number++, line);
    }
}
