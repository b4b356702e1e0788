/*
 * feature: memory that cannot be read (PROT_NONE) or written but holds data, and generated code
 */
#include "check.h"

#define LENGTH (32 * PAGE)

int main(int argc, char **argv) {
    /* mov $42, %eax; ret */
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
    check_start(argc, argv);
    char *none = check_map(LENGTH), *read_only = check_map(LENGTH), *mixed = check_map(LENGTH),
         *text = check_map(PAGE);
    check_fill(none, LENGTH, 1);
    check_fill(read_only, LENGTH, 2);
    check_fill(mixed, LENGTH, 3);
    memcpy(text, code, sizeof(code));
    SYS(mprotect(none, LENGTH, PROT_NONE));
    SYS(mprotect(read_only, LENGTH, PROT_READ));
    for (size_t page = 0; page < 32; page += 2)
        SYS(mprotect(mixed + page * PAGE, PAGE, PROT_NONE));
    SYS(mprotect(text, PAGE, PROT_READ | PROT_EXEC));
    check_move();
    CHECK(((int (*)(void))text)() == 42, "generated code answers something else");
    int null = SYS(open("/dev/null", O_WRONLY)), ends[2];
    SYS(pipe(ends));
    CHECK(write(ends[1], none, 8) == -1 && errno == EFAULT, "PROT_NONE can be read");
    CHECK(read(SYS(open("/dev/zero", O_RDONLY)), read_only, 8) == -1 && errno == EFAULT,
          "PROT_READ can be written");
    close(null);
    SYS(mprotect(none, LENGTH, PROT_READ | PROT_WRITE));
    SYS(mprotect(mixed, LENGTH, PROT_READ));
    check_filled("PROT_NONE", none, LENGTH, 1);
    check_filled("PROT_READ", read_only, LENGTH, 2);
    check_filled("every other page PROT_NONE", mixed, LENGTH, 3);
    return check_passed();
}
