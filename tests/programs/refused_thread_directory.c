/*
 * feature: a thread with a working directory and umask, or descriptors, of its own (unshare)
 * refused: of its own (unshare(2))
 */
#include "check.h"
#include <pthread.h>
#include <sched.h>

static volatile int apart, ended;
static mode_t mask;
static char *directory;

static void *own(void *unused) {
    (void)unused;
    SYS(unshare(CLONE_FS | CLONE_FILES));
    SYS(chdir("/usr/share"));
    umask(077);
    apart = 1;
    while (!ended)
        usleep(1000);
    directory = getcwd(NULL, 0);
    mask = umask(0);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread;

    check_start(argc, argv);
    SYS(pthread_create(&thread, NULL, own, NULL) ? -1 : 0);
    while (!apart)
        usleep(1000);
    check_move();
    ended = 1;
    pthread_join(thread, NULL);
    CHECK(directory && strcmp(directory, "/usr/share") == 0 && mask == 077, "directory %s, umask %o",
          directory, mask);
    return check_passed();
}
