/*
 * feature: private mappings of a file: unchanged pages come from the file, changed ones travel
 * limits: the file must be there on the destination (--files strict: same size and mtime; --map-path moves
 * paths)
 */
#include "check.h"

#define PAGES 64UL

int main(int argc, char **argv) {
    static char content[PAGES * PAGE];
    check_start(argc, argv);
    int file = SYS(open(check_path("mapped"), O_RDWR | O_CREAT, 0644));
    check_fill(content, sizeof(content), 1);
    check_write(file, content, sizeof(content));
    check_write(file, "tail", 4);
    close(file);
    file = SYS(open(check_path("mapped"), O_RDONLY));
    char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    char *part = mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE, file, (off_t)((PAGES - 7) * PAGE));
    CHECK(memory != MAP_FAILED && part != MAP_FAILED, "mmap: %s", strerror(errno));
    close(file);
    for (size_t page = 0; page < PAGES; page += 3)
        check_fill(memory + page * PAGE, PAGE, 1000 + page);
    check_move();
    for (size_t page = 0; page < PAGES; page++) {
        if (page % 3 == 0)
            check_filled("a changed page", memory + page * PAGE, PAGE, 1000 + page);
        else
            CHECK(check_page_is_filled(memory, page * PAGE, 1), "page %zu is not the file's", page);
    }
    for (size_t page = 0; page < 7; page++)
        CHECK(memcmp(part + page * PAGE, content + (PAGES - 7 + page) * PAGE, PAGE) == 0,
              "the mapped part changed");
    CHECK(memcmp(part + 7 * PAGE, "tail\0\0\0", 8) == 0, "the file's last, partial page changed");
    memory[PAGE] = 5;
    file = SYS(open(check_path("mapped"), O_RDONLY));
    char *read_back = malloc(sizeof(content));
    CHECK(SYS(read(file, read_back, sizeof(content))) == sizeof(content), "a short read");
    CHECK(memcmp(read_back, content, sizeof(content)) == 0, "the file changed");
    return check_passed();
}
