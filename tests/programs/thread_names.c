/*
 * feature: thread names, also those that are no text
 */
#include "check.h"
#include <sys/prctl.h>

static volatile int named;
static volatile bool check;

static void *body(void *argument) {
    char found[16];
    SYS(prctl(PR_SET_NAME, argument));
    __atomic_add_fetch(&named, 1, __ATOMIC_SEQ_CST);
    while (!check)
        check_sleep(5);
    SYS(prctl(PR_GET_NAME, found));
    CHECK(strcmp(found, argument) == 0, "a thread is named \"%s\", was \"%s\"", found, (char *)argument);
    return NULL;
}

int main(int argc, char **argv) {
    static char *const names[] = {"worker/0", "a b (c)\nd", "", "fifteen letters"};
    pthread_t threads[COUNT(names)];
    check_start(argc, argv);
    for (size_t i = 0; i < COUNT(names); i++)
        threads[i] = check_thread(body, names[i]);
    while (named < (int)COUNT(names))
        check_sleep(1);
    SYS(prctl(PR_SET_NAME, "\xff) (\n\xfe"));
    int owned[2];
    SYS(pipe(owned));
    SYS(fcntl(owned[0], F_SETOWN, getpid()));
    check_move();
    char own[16];
    SYS(prctl(PR_GET_NAME, own));
    CHECK(strcmp(own, "\xff) (\n\xfe") == 0, "the first thread is named \"%s\"", own);
    check = true;
    for (size_t i = 0; i < COUNT(names); i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
