/*
 * feature: executable, command line, environment and auxiliary vector, as /proc shows them
 */
#include "check.h"
#include <sys/auxv.h>
#include <sys/prctl.h>

static void compare(const char *name, const char *before, size_t length) {
    char path[64];
    size_t now_length;
    snprintf(path, sizeof(path), "/proc/self/%s", name);
    char *now = check_read_file(path, &now_length);
    CHECK(now_length == length && memcmp(before, now, length) == 0, "%s changed: \"%s\" was \"%s\"", path,
          now, before);
    free(now);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"cmdline", "environ", "auxv", "comm"};
    char *before[COUNT(names)], executable[2][500] = {0};
    size_t lengths[COUNT(names)];
    struct stat status[2];
    check_start(argc, argv);
    /* A title, as servers write it over their arguments. */
    argv[0][0] = 'X';
    SYS(prctl(PR_SET_NAME, "renamed (1) )x"));
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/self/%s", names[i]);
        before[i] = check_read_file(path, &lengths[i]);
    }
    SYS(readlink("/proc/self/exe", executable[0], sizeof(executable[0]) - 1));
    SYS(stat("/proc/self/exe", &status[0]));
    check_move();
    for (size_t i = 0; i < COUNT(names); i++)
        compare(names[i], before[i], lengths[i]);
    SYS(readlink("/proc/self/exe", executable[1], sizeof(executable[1]) - 1));
    SYS(stat("/proc/self/exe", &status[1]));
    CHECK(strcmp(executable[0], executable[1]) == 0, "the executable is %s, was %s", executable[1],
          executable[0]);
    CHECK(status[0].st_size == status[1].st_size, "the executable's size changed");
    CHECK(getauxval(AT_PAGESZ) == PAGE && getauxval(AT_RANDOM) != 0, "the auxiliary vector changed");
    return check_passed();
}
