/*
 * feature: what is registered for membarrier(2)
 * limits: before Linux 6.3 a kernel does not tell what is registered, so the registration is lost in the move
 */
#include "check.h"
#include <linux/membarrier.h>
#include <sys/syscall.h>

/* Younger than Debian 12's kernel headers. */
enum { GET_REGISTRATIONS = 1 << 9 };

static int membarrier(int command) {
    return (int)syscall(SYS_membarrier, command, 0, 0);
}

int main(int argc, char **argv) {
    int registered[] = {MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED};
    int used[] = {MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_GLOBAL_EXPEDITED};
    int before = 0;

    check_start(argc, argv);
    for (int i = 0; i < 2; i++)
        SYS(membarrier(registered[i]));
    before = membarrier(GET_REGISTRATIONS);
    check_move();
    for (int i = 0; i < 2; i++)
        SYS(membarrier(used[i]));
    CHECK(membarrier(GET_REGISTRATIONS) == before, "registered %#x, before %#x",
          membarrier(GET_REGISTRATIONS), before);
    CHECK(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == -1 && errno == EPERM,
          "what was not registered is now");
    return check_passed();
}
