/*
 * feature: the layout of memory is the same afterwards, with nothing left behind, by its names too
 */
#include "check.h"

struct line {
    unsigned long start, end, offset;
    char protection[8], name[500];
};

/* Neighbours of anonymous memory are one: whether the kernel joins them depends on who wrote to them first.
 */
static int joins(const struct line *line, const struct line *next) {
    return line->end == next->start && !line->offset && !next->offset && !line->name[0] && !next->name[0] &&
           !strcmp(line->protection, next->protection);
}

/* Addresses, protections, offsets and names; not inodes and devices, which may differ on another machine. */
static char *layout(void) {
    FILE *file = fopen("/proc/self/maps", "re");
    static char text_of_line[1000], text[1 << 20];
    struct line held = {0};
    char *out = text;
    CHECK(file, "/proc/self/maps: %s", strerror(errno));
    for (int more = 1; more;) {
        struct line line = {0};
        more = fgets(text_of_line, sizeof(text_of_line), file) != NULL;
        if (more && sscanf(text_of_line, "%lx-%lx %7s %lx %*s %*s %499[^\n]", &line.start, &line.end,
                           line.protection, &line.offset, line.name) < 4)
            continue;
        if (more && held.end && joins(&held, &line)) {
            held.end = line.end;
            continue;
        }
        if (held.end)
            out += sprintf(out, "%lx-%lx %s %lx %s\n", held.start, held.end, held.protection, held.offset,
                           held.name);
        held = line;
    }
    fclose(file);
    return strdup(text);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    for (int i = 0; i < 20; i++)
        check_fill(check_map(2 * PAGE), PAGE, 1);
    /* Twice: reading it makes the heap what it will be. */
    free(layout());
    char *before = layout();
    char *heap = sbrk(0);
    check_move();
    /* A pager may still be at work, whose registration the kernel shows by splitting mappings. */
    char *after = layout();
    for (int wait = 0; strcmp(before, after) != 0 && wait < 500; wait++) {
        check_sleep(10);
        free(after);
        after = layout();
    }
    CHECK(sbrk(0) == heap, "the heap grew while looking");
    const char *a = before, *b = after;
    while (*a && *a == *b)
        a++, b++;
    while (a > before && a[-1] != '\n')
        a--, b--;
    CHECK(strcmp(before, after) == 0, "first difference: \"%.*s\" was \"%.*s\"", (int)strcspn(b, "\n"), b,
          (int)strcspn(a, "\n"), a);
    return check_passed();
}
