/*
 * feature: a System V semaphore that the kernel gives back at the end of its holder (SEM_UNDO)
 * refused: SEM_UNDO
 */
#include "check.h"
#include <sys/ipc.h>
#include <sys/sem.h>

int main(int argc, char **argv) {
    struct sembuf take = {0, -1, SEM_UNDO}, give = {0, 1, SEM_UNDO};
    int set = -1;

    check_start(argc, argv);
    set = SYS(semget(IPC_PRIVATE, 1, 0600 | IPC_CREAT));
    SYS(semctl(set, 0, SETVAL, 1));
    SYS(semop(set, &take, 1));
    check_move();
    int held = semctl(set, 0, GETVAL);
    int given = semop(set, &give, 1);
    SYS(semctl(set, 0, IPC_RMID));
    CHECK(held == 0 && given == 0, "what this process holds has the value %d", held);
    return check_passed();
}
