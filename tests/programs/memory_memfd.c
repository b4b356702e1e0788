/*
 * feature: memfd: mapped, unmapped, sealed, with its offset
 */
#include "check.h"

#define LENGTH (64 * PAGE)

static char content[LENGTH];

static void expect_content(const char *name, int file, size_t length, uint64_t seed) {
    char *found = malloc(length);
    CHECK(SYS(pread(file, found, length, 0)) == (ssize_t)length, "%s is shorter", name);
    check_filled(name, found, length, seed);
    struct stat status;
    SYS(fstat(file, &status));
    CHECK(status.st_size == (off_t)length, "%s has %ld bytes", name, (long)status.st_size);
    free(found);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    int mapped = SYS(memfd_create("mapped", MFD_CLOEXEC)), unmapped = SYS(memfd_create("unmapped", 0)),
        sealed = SYS(memfd_create("sealed", MFD_ALLOW_SEALING)), empty = SYS(memfd_create("empty", 0)),
        sparse = SYS(memfd_create("sparse", 0));
    SYS(ftruncate(mapped, LENGTH));
    char *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    char *copy = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0);
    CHECK(memory != MAP_FAILED && copy != MAP_FAILED, "mmap: %s", strerror(errno));
    check_fill(memory, LENGTH, 1);
    check_fill(copy, LENGTH / 2, 2);
    check_fill(content, LENGTH, 3);
    check_write(unmapped, content, LENGTH);
    SYS(lseek(unmapped, 4096, SEEK_SET));
    check_fill(content, LENGTH, 4);
    check_write(sealed, content, LENGTH);
    SYS(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK));
    const char *read_only = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED, sealed, 0);
    SYS(ftruncate(sparse, 1L << 30));
    CHECK(SYS(pwrite(sparse, "far", 3, 900 << 20)) == 3, "pwrite");
    check_move();
    check_filled("the mapping", memory, LENGTH, 1);
    check_filled("the private mapping's changed pages", copy, LENGTH / 2, 2);
    CHECK(memcmp(copy + LENGTH / 2, memory + LENGTH / 2, LENGTH / 2) == 0,
          "the private mapping's other pages changed");
    expect_content("the mapped one", mapped, LENGTH, 1);
    expect_content("the unmapped one", unmapped, LENGTH, 3);
    CHECK(SYS(lseek(unmapped, 0, SEEK_CUR)) == 4096, "the offset is %ld", (long)lseek(unmapped, 0, SEEK_CUR));
    expect_content("the sealed one", sealed, LENGTH, 4);
    check_filled("the sealed one's mapping", read_only, LENGTH, 4);
    CHECK(SYS(fcntl(sealed, F_GET_SEALS)) == (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK),
          "the seals changed");
    CHECK(write(sealed, "x", 1) == -1 && errno == EPERM, "the sealed one can be written");
    CHECK(SYS(fcntl(mapped, F_GETFD)) == FD_CLOEXEC && SYS(fcntl(unmapped, F_GETFD)) == 0,
          "the flags changed");
    struct stat status;
    SYS(fstat(empty, &status));
    CHECK(status.st_size == 0, "the empty one has %ld bytes", (long)status.st_size);
    char far[3];
    CHECK(SYS(pread(sparse, far, 3, 900 << 20)) == 3 && memcmp(far, "far", 3) == 0,
          "the sparse one's data changed");
    SYS(fstat(sparse, &status));
    CHECK(status.st_size == 1L << 30 && status.st_blocks < 1000, "the sparse one takes %ld blocks",
          (long)status.st_blocks);
    check_fill(memory, LENGTH, 5);
    expect_content("the mapped one", mapped, LENGTH, 5);
    return check_passed();
}
