/*
 * feature: a POSIX message queue, unlinked, with messages
 * refused: message queue
 */
#include "check.h"
#include <mqueue.h>

int main(int argc, char **argv) {
    struct mq_attr attributes = {.mq_maxmsg = 8, .mq_msgsize = 64}, found;
    char name[64], text[64];
    unsigned int priority = 0;
    check_start(argc, argv);
    snprintf(name, sizeof(name), "/check%d", (int)getpid());
    mqd_t queue = SYS(mq_open(name, O_CREAT | O_RDWR, 0600, &attributes));
    SYS(mq_send(queue, "low", 4, 1));
    SYS(mq_send(queue, "high", 5, 9));
    SYS(mq_unlink(name));
    check_move();
    SYS(mq_getattr(queue, &found));
    CHECK(found.mq_curmsgs == 2, "%ld messages wait", found.mq_curmsgs);
    CHECK(SYS(mq_receive(queue, text, sizeof(text), &priority)) == 5 && priority == 9, "received \"%.4s\"",
          text);
    return check_passed();
}
