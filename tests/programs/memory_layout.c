/*
 * feature: the layout of memory is the same afterwards, with nothing left behind, by its names too
 */
#include "check.h"

/* Addresses, protections, offsets and names; not inodes and devices, which may differ on another machine. */
static char *layout(void) {
    FILE *file = fopen("/proc/self/maps", "re");
    static char line[1000], text[1 << 20];
    char *out = text;
    CHECK(file, "/proc/self/maps: %s", strerror(errno));
    while (fgets(line, sizeof(line), file)) {
        unsigned long start, end, offset;
        char protection[8], name[500] = "";
        if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %499[^\n]", &start, &end, protection, &offset, name) >= 4)
            out += sprintf(out, "%lx-%lx %s %lx %s\n", start, end, protection, offset, name);
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
