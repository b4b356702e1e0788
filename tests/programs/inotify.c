/*
 * feature: inotify with its watches under their numbers; events come once each, also those that come during the move
 * limits: on one host the instance itself is handed over. To another host, an event that comes after the freeze ends the
 * migration, and one of the last instant before COMMIT is lost. Whoever watches files on one host sees lm-restore
 * open the process's files, and the source close them
 */
#include "check.h"
#include <sys/inotify.h>
#include <sys/stat.h>

enum { FILES = 400 };
static unsigned char heard[FILES];
static const char *folder;

static void *create(void *unused) {
    (void)unused;
    for (int i = 0; i < FILES; i++) {
        char path[600];
        snprintf(path, sizeof(path), "%s/%d", folder, i);
        close(SYS(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)));
        check_sleep(i % 10 == 0 ? 20 : 5);
        while (i == FILES / 2 && !check_is_moved())
            check_sleep(5);
    }
    return NULL;
}

int main(int argc, char **argv) {
    char events[8192] __attribute__((aligned(8)));
    int count = 0;
    check_start(argc, argv);
    folder = check_path("watched");
    SYS(mkdir(folder, 0700));
    int number = SYS(inotify_init1(IN_CLOEXEC));
    for (int i = 0; i < 4; i++)
        SYS(inotify_rm_watch(number, SYS(inotify_add_watch(number, check_path("."), IN_CREATE))));
    int watch = SYS(inotify_add_watch(number, folder, IN_CREATE));
    CHECK(watch == 5, "the watch is %d", watch);
    for (int i = 0; i < 4; i++)
        SYS((int)read(number, events, sizeof(events) / 512));
    check_ready();
    pthread_t thread = check_thread(create, NULL);
    while (count < FILES) {
        ssize_t length = SYS(read(number, events, sizeof(events)));
        for (char *at = events; at < events + length;) {
            struct inotify_event *event = (struct inotify_event *)at;
            at += sizeof(*event) + event->len;
            CHECK(event->wd == watch && event->mask == IN_CREATE, "an event %#x of watch %d", event->mask,
                  event->wd);
            CHECK(heard[atoi(event->name)]++ == 0, "%s came twice", event->name);
            count++;
        }
    }
    PTHREAD(pthread_join(thread, NULL));
    check_wait_moved();
    CHECK(SYS(inotify_add_watch(number, check_path("."), IN_ATTRIB)) == watch + 1, "another next watch");
    return check_passed();
}
