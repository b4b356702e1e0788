/*
 * feature: open files that have no name any more, mapped ones too
 * limits: their content travels, with owner, mode and times, and without holes; the destination needs room for it.
 * Extended attributes and flags (chattr(1)) do not; one that may never get a name (O_TMPFILE with O_EXCL) may get one afterwards
 */
#include "check.h"

int main(int argc, char **argv) {
    static char content[100 * PAGE], found[100 * PAGE];
    struct stat status;
    check_start(argc, argv);
    int unlinked = SYS(open(check_path("unlinked"), O_RDWR | O_CREAT | O_EXCL, 0640)),
        nameless = SYS(open(check_directory, O_RDWR | O_TMPFILE, 0600)),
        sparse = SYS(open(check_directory, O_RDWR | O_TMPFILE, 0600)),
        empty = SYS(dup(SYS(open(check_path("empty"), O_RDWR | O_CREAT, 0600))));
    check_fill(content, sizeof(content), 1);
    check_write(unlinked, content, sizeof(content));
    SYS(lseek(unlinked, 50 * PAGE, SEEK_SET));
    check_write(nameless, "nameless", 8);
    char *memory = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, unlinked, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(unlink(check_path("unlinked")));
    SYS(unlink(check_path("empty")));
    SYS(ftruncate(sparse, 60L << 30));
    CHECK(SYS(pwrite(sparse, "far", 3, 50L << 30)) == 3, "pwrite");
    SYS(fchown(nameless, 123, 456));
    SYS(fchmod(nameless, 06751));
    SYS(futimens(nameless, (struct timespec[]){{1000, 1}, {2000, 2}}));
    check_move();
    SYS(fstat(nameless, &status));
    CHECK(status.st_uid == 123 && status.st_gid == 456 && (status.st_mode & 07777) == 06751,
          "owner %d:%d, mode %o", (int)status.st_uid, (int)status.st_gid, status.st_mode & 07777);
    CHECK(status.st_atim.tv_sec == 1000 && status.st_mtim.tv_sec == 2000 && status.st_mtim.tv_nsec == 2,
          "times %ld and %ld", (long)status.st_atim.tv_sec, (long)status.st_mtim.tv_sec);
    CHECK(SYS(pread(sparse, found, 3, 50L << 30)) == 3 && memcmp(found, "far", 3) == 0,
          "the sparse one changed");
    SYS(fstat(sparse, &status));
    CHECK(status.st_size == 60L << 30 && status.st_blocks < 1000,
          "the sparse one has %ld bytes in %ld blocks", (long)status.st_size, (long)status.st_blocks);
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
    char place[64];
    snprintf(place, sizeof(place), "/proc/self/fd/%d", nameless);
    SYS(linkat(AT_FDCWD, place, AT_FDCWD, check_path("named"), AT_SYMLINK_FOLLOW));
    return check_passed();
}
