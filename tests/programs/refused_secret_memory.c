/*
 * feature: secret memory (memfd_secret), which nobody else can read, also when only a mapping of it is left
 * refused: secret
 */
#include "check.h"
#include <sys/syscall.h>

int main(int argc, char **argv) {
    check_start(argc, argv);
    int file = (int)SYS(syscall(447 /* memfd_secret */, 0));
    SYS(ftruncate(file, PAGE));
    char *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    close(file);
    strcpy(memory, "secret");
    check_move();
    CHECK(strcmp(memory, "secret") == 0, "it says %s", memory);
    return check_passed();
}
