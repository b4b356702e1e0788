/*
 * feature: named semaphores (sem_open(3)), with their names and without, and other memory of /dev/shm that only mappings lead to
 * limits: one that has a name is refused to another host, since others there would not find it
 */
#include "check.h"
#include <semaphore.h>

static sem_t *semaphore;
static volatile bool taken;

static void *waiter(void *unused) {
    SYS(sem_wait(semaphore));
    taken = true;
    return unused;
}

int main(int argc, char **argv) {
    char name[64], kept[64], file_of_kept[80];
    int value;
    check_start(argc, argv);
    snprintf(name, sizeof(name), "/check%d", (int)getpid());
    semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 2);
    CHECK(semaphore != SEM_FAILED, "sem_open: %s", strerror(errno));
    SYS(sem_unlink(name));
    snprintf(kept, sizeof(kept), "/kept%d", (int)getpid());
    snprintf(file_of_kept, sizeof(file_of_kept), "/sem.%s", kept + 1);
    sem_t *named = sem_open(kept, O_CREAT | O_EXCL, 0600, 5);
    CHECK(named != SEM_FAILED, "sem_open: %s", strerror(errno));
    int file = SYS(shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600));
    SYS(shm_unlink(name));
    SYS(ftruncate(file, 64 * PAGE));
    char *memory = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *again = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED && again != MAP_FAILED, "mmap: %s", strerror(errno));
    close(file);
    check_fill(memory, 64 * PAGE, 1);
    SYS(sem_wait(semaphore));
    SYS(sem_wait(semaphore));
    pthread_t thread = check_thread(waiter, NULL);
    check_move();
    SYS(sem_wait(named));
    /* The value is in the first word. What sem_open would find by the name is what is mapped here already. */
    int by_name = SYS(shm_open(file_of_kept, O_RDONLY, 0));
    CHECK(read(by_name, &value, sizeof(value)) == sizeof(value) && value == 4, "by its name it is %d", value);
    close(by_name);
    SYS(sem_unlink(kept));
    SYS(sem_getvalue(semaphore, &value));
    CHECK(value == 0 && !taken, "the semaphore is %d", value);
    SYS(sem_post(semaphore));
    PTHREAD(pthread_join(thread, NULL));
    CHECK(taken, "the waiter does not have it");
    check_filled("unlinked shared memory", memory, 64 * PAGE, 1);
    check_filled("its second mapping", again, 32 * PAGE, 1);
    check_fill(again, 32 * PAGE, 2);
    check_filled("unlinked shared memory", memory, 32 * PAGE, 2);
    return check_passed();
}
