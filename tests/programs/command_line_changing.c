/*
 * feature: a command line that the process writes anew all the time, while others read it
 */
#include "check.h"

static char last = 'a';

int main(int argc, char **argv) {
    check_start(argc, argv);
    check_ready();
    while (!check_is_moved()) {
        for (int i = 0; i < 100; i++) {
            last = last == 'z' ? 'a' : (char)(last + 1);
            argv[0][0] = last;
        }
        check_sleep(1);
        CHECK(argv[0][0] == last, "the command line begins with %c, not %c", argv[0][0], last);
    }
    char *now = check_read_file("/proc/self/cmdline", NULL);
    CHECK(now[0] == last, "others see %c, not %c", now[0], last);
    free(now);
    return check_passed();
}
