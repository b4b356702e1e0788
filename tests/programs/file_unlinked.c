/*
 * feature: open files that have no name any more, mapped ones too
 * limits: their content travels; the destination needs room for it
 */
#include "check.h"

int main(int argc, char **argv) {
    static char content[100 * PAGE], found[100 * PAGE];
    struct stat status;
    check_start(argc, argv);
    int unlinked = SYS(open(check_path("unlinked"), O_RDWR | O_CREAT | O_EXCL, 0640)),
        nameless = SYS(open(check_directory, O_RDWR | O_TMPFILE, 0600)),
        empty = SYS(dup(SYS(open(check_path("empty"), O_RDWR | O_CREAT, 0600))));
    check_fill(content, sizeof(content), 1);
    check_write(unlinked, content, sizeof(content));
    SYS(lseek(unlinked, 50 * PAGE, SEEK_SET));
    check_write(nameless, "nameless", 8);
    char *memory = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, unlinked, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(unlink(check_path("unlinked")));
    SYS(unlink(check_path("empty")));
    check_move();
    CHECK(SYS(lseek(unlinked, 0, SEEK_CUR)) == (off_t)(50 * PAGE), "its offset is %ld",
          (long)lseek(unlinked, 0, SEEK_CUR));
    CHECK(SYS(pread(unlinked, found, sizeof(found), 0)) == sizeof(found), "a short read");
    CHECK(memcmp(found, content, sizeof(found)) == 0, "its content changed");
    SYS(fstat(unlinked, &status));
    CHECK(status.st_nlink == 0 && (status.st_mode & 0777) == 0640 && status.st_size == sizeof(content),
          "links %ld, mode %o, size %ld", (long)status.st_nlink, status.st_mode & 0777, (long)status.st_size);
    check_filled("its mapping", memory, 10 * PAGE, 1);
    check_fill(memory, PAGE, 2);
    CHECK(SYS(pread(unlinked, found, PAGE, 0)) == PAGE && check_page_is_filled(found, 0, 2),
          "the mapping is another file's");
    CHECK(SYS(pread(nameless, found, 100, 0)) == 8 && memcmp(found, "nameless", 8) == 0,
          "the nameless one changed");
    CHECK(SYS(pread(empty, found, 100, 0)) == 0, "the empty one has content");
    check_write(nameless, "more", 4);
    CHECK(SYS(pread(nameless, found, 100, 0)) == 12 && memcmp(found, "namelessmore", 12) == 0,
          "its offset changed");
    CHECK(access(check_path("unlinked"), F_OK) == -1, "it has a name again");
    return check_passed();
}
