#define _GNU_SOURCE
#include "kernel/memory/maps.h"

#include <errno.h>
#include <string.h>

struct cursor {
    const char *at;
    const char *end;
};

/* The shortest header: "0-1 rwxp 0 0:0 0" and its end. */
enum { SHORTEST_LINE = 17 };

size_t lm_maps_bound(const char *text, size_t length) {
    return length / SHORTEST_LINE + 1;
}

static int digit_value(char character) {
    if (character >= '0' && character <= '9')
        return character - '0';
    if (character >= 'a' && character <= 'f')
        return character - 'a' + 10;
    return 16;
}

static uint64_t number(struct cursor *cursor, int base) {
    uint64_t value = 0;

    while (cursor->at < cursor->end && digit_value(*cursor->at) < base)
        value = value * (uint64_t)base + (uint64_t)digit_value(*cursor->at++);
    return value;
}

static int expect(struct cursor *cursor, char character) {
    if (cursor->at == cursor->end || *cursor->at != character)
        return -EBADMSG;
    cursor->at++;
    return 0;
}

static void skip_spaces(struct cursor *cursor) {
    while (cursor->at < cursor->end && *cursor->at == ' ')
        cursor->at++;
}

/* start-end perms offset major:minor inode   path */
static int parse_header(const char *text, struct cursor *line, uint64_t *columns) {
    int error = 0;
    const char *device = NULL;

    memset(columns, 0, LM_MAP_COLUMNS * sizeof *columns);
    columns[LM_MAP_START] = number(line, 16);
    error |= expect(line, '-');
    columns[LM_MAP_END] = number(line, 16);
    error |= expect(line, ' ');
    if (error != 0 || line->end - line->at < 5)
        return -EBADMSG;
    columns[LM_MAP_PERMISSIONS_AT] = (uint64_t)(line->at - text);
    line->at += 4;
    error |= expect(line, ' ');
    columns[LM_MAP_OFFSET] = number(line, 16);
    error |= expect(line, ' ');
    device = line->at;
    columns[LM_MAP_DEVICE_AT] = (uint64_t)(device - text);
    number(line, 16);
    error |= expect(line, ':');
    number(line, 16);
    columns[LM_MAP_DEVICE_LENGTH] = (uint64_t)(line->at - device);
    error |= expect(line, ' ');
    columns[LM_MAP_INODE] = number(line, 10);
    skip_spaces(line);
    columns[LM_MAP_PATH_AT] = (uint64_t)(line->at - text);
    columns[LM_MAP_PATH_LENGTH] = (uint64_t)(line->end - line->at);
    return error;
}

static int has_name(struct cursor *line, const char *name) {
    size_t length = strlen(name);

    if ((size_t)(line->end - line->at) < length || memcmp(line->at, name, length) != 0)
        return 0;
    line->at += length;
    skip_spaces(line);
    return 1;
}

/* "VmFlags: rd wr mr"; the other fields are sizes. */
static void parse_field(const char *text, struct cursor *line, uint64_t *columns) {
    if (has_name(line, "VmFlags:")) {
        while (line->end > line->at && line->end[-1] == ' ')
            line->end--;
        columns[LM_MAP_FLAGS_AT] = (uint64_t)(line->at - text);
        columns[LM_MAP_FLAGS_LENGTH] = (uint64_t)(line->end - line->at);
    }
}

long lm_maps_parse(const char *text, size_t length, uint64_t *columns, size_t capacity) {
    struct cursor line = {text, text};
    const char *next = text;
    size_t count = 0;

    while (next < text + length) {
        const char *newline = memchr(next, '\n', (size_t)(text + length - next));
        int error = 0;

        line.at = next;
        line.end = newline != NULL ? newline : text + length;
        next = line.end + 1;
        if (line.at < line.end && digit_value(*line.at) < 16) {
            if (count == capacity)
                return -ENOBUFS;
            error = parse_header(text, &line, columns + LM_MAP_COLUMNS * count++);
        } else if (count > 0) {
            parse_field(text, &line, columns + LM_MAP_COLUMNS * (count - 1));
        } else {
            error = -EBADMSG;
        }
        if (error != 0)
            return error;
    }
    return (long)count;
}
