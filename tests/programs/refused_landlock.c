/*
 * feature: a thread in a Landlock domain
 * refused: Landlock
 */
#include "check.h"
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static volatile int confined, ended, kept_out;

static int is_kept_out(void) {
    int file = open("/etc/passwd", O_RDONLY);

    if (file >= 0)
        close(file);
    return file < 0 && errno == EACCES;
}

static void *inside(void *unused) {
    struct landlock_ruleset_attr handled = {.handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE};
    int ruleset = (int)SYS(syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0));

    (void)unused;
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(syscall(SYS_landlock_restrict_self, ruleset, 0));
    close(ruleset);
    confined = 1;
    while (!ended)
        usleep(1000);
    kept_out = is_kept_out();
    return NULL;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    pthread_t thread = check_thread(inside, NULL);
    while (!confined)
        usleep(1000);
    check_move();
    ended = 1;
    PTHREAD(pthread_join(thread, NULL));
    CHECK(kept_out && !is_kept_out(), "the thread's domain is another one");
    return check_passed();
}
