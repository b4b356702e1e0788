/*
 * feature: oom_score_adj, personality (of each thread), dumpable, coredump filter, huge-page and subreaper flags, parent-death
 * signal
 */
#include "check.h"
#include <sys/eventfd.h>
#include <sys/personality.h>
#include <sys/prctl.h>

static int parent_death_signal(void) {
    int number = 0;
    SYS(prctl(PR_GET_PDEATHSIG, &number));
    return number;
}

static int subreaper(void) {
    int flag = 0;
    SYS(prctl(PR_GET_CHILD_SUBREAPER, &flag));
    return flag;
}

static void write_file(const char *path, const char *text) {
    int file = SYS(open(path, O_WRONLY));
    check_write(file, text, strlen(text));
    close(file);
}

static int moved, personality_found;
static pid_t other_id;

/* What personality(2) sets is the calling thread's. */
static void *other_thread(void *unused) {
    uint64_t count;
    SYS(personality(SHORT_INODE));
    __atomic_store_n(&other_id, gettid(), __ATOMIC_RELEASE);
    while (read(moved, &count, sizeof(count)) < 0)
        ;
    personality_found = SYS(personality(0xffffffff));
    return unused;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    write_file("/proc/self/oom_score_adj", "321");
    write_file("/proc/self/coredump_filter", "0x13");
    SYS(personality(ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS));
    SYS(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    SYS(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    SYS(prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
    SYS(signal(SIGUSR1, SIG_IGN) == SIG_ERR ? -1 : 0);
    pthread_t other;
    pid_t sleeping;
    moved = SYS(eventfd(0, 0));
    pthread_create(&other, NULL, other_thread, NULL);
    while ((sleeping = __atomic_load_n(&other_id, __ATOMIC_ACQUIRE)) == 0)
        check_sleep(1);
    check_wait_asleep(sleeping);
    check_move();
    check_write(moved, &(uint64_t){1}, sizeof(uint64_t));
    pthread_join(other, NULL);
    CHECK(personality_found == SHORT_INODE, "the other thread's personality is %#x", personality_found);
    CHECK(prctl(PR_GET_DUMPABLE) == 0, "dumpable is %d", prctl(PR_GET_DUMPABLE));
    SYS(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    CHECK(strcmp(check_read_file("/proc/self/oom_score_adj", NULL), "321\n") == 0, "oom_score_adj is %s",
          check_read_file("/proc/self/oom_score_adj", NULL));
    CHECK(strtoul(check_read_file("/proc/self/coredump_filter", NULL), NULL, 16) == 0x13,
          "the coredump filter is %s", check_read_file("/proc/self/coredump_filter", NULL));
    CHECK(SYS(personality(0xffffffff)) == (ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS), "the personality is %#x",
          personality(0xffffffff));
    CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "huge pages are allowed again");
    CHECK(subreaper() == 1, "it is no subreaper any more");
    CHECK(parent_death_signal() == SIGUSR1, "the parent-death signal is %d", parent_death_signal());
    return check_passed();
}
