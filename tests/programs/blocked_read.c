/*
 * feature: threads blocked in read, write, readv, recv, accept and in an eventfd's read
 */
#include "check.h"
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define WAYS 6

static int pipes[3][2], pair[2], event, listener;
static volatile pid_t ids[WAYS];
static volatile int finished;

static void *block_in(void *argument) {
    uintptr_t way = (uintptr_t)argument;
    char buffer[100] = {0}, more[100] = {0};
    uint64_t count = 0;
    struct iovec parts[] = {{buffer, 3}, {more, 100}};
    ids[way] = gettid();
    switch (way) {
    case 0:
        CHECK(SYS(read(pipes[0][0], buffer, 100)) == 5 && strcmp(buffer, "read!") == 0, "read \"%s\"",
              buffer);
        break;
    case 1:
        CHECK(SYS(readv(pipes[1][0], parts, 2)) == 6 && strcmp(buffer, "rea") == 0 &&
                  strcmp(more, "dv!") == 0,
              "readv \"%s\" \"%s\"", buffer, more);
        break;
    case 2:
        CHECK(SYS(recv(pair[0], buffer, 100, 0)) == 5 && strcmp(buffer, "recv!") == 0, "recv \"%s\"", buffer);
        break;
    case 3:
        CHECK(SYS(read(event, &count, 8)) == 8 && count == 5, "an eventfd of %lu", count);
        break;
    case 4:
        close(SYS(accept(listener, NULL, NULL)));
        break;
    default:
        /* The pipe is full but for less than this. */
        CHECK(SYS(write(pipes[2][1], "write!", 6)) == 6, "a short write");
    }
    __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[WAYS];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    static char block[4096], got[70000];
    check_start(argc, argv);
    for (int i = 0; i < 3; i++)
        SYS(pipe(pipes[i]));
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    event = SYS(eventfd(0, 0));
    listener = SYS(socket(AF_INET, SOCK_STREAM, 0));
    SYS(bind(listener, (struct sockaddr *)&address, length));
    SYS(listen(listener, 5));
    SYS(getsockname(listener, (struct sockaddr *)&address, &length));
    SYS(fcntl(pipes[2][1], F_SETPIPE_SZ, 65536));
    for (int i = 0; i < 16; i++)
        check_write(pipes[2][1], block, sizeof(block));
    for (uintptr_t i = 0; i < WAYS; i++) {
        threads[i] = check_thread(block_in, (void *)i);
        while (!ids[i])
            check_sleep(1);
        check_wait_asleep(ids[i]);
    }
    check_move();
    check_sleep(50);
    CHECK(finished == 0, "%d calls returned by themselves", finished);
    check_write(pipes[0][1], "read!", 5);
    check_write(pipes[1][1], "readv!", 6);
    check_write(pair[1], "recv!", 5);
    check_write(event, &(uint64_t){5}, 8);
    int client = SYS(socket(AF_INET, SOCK_STREAM, 0));
    SYS(connect(client, (struct sockaddr *)&address, length));
    for (size_t used = 0; used < 65536 + 6;)
        used += (size_t)SYS(read(pipes[2][0], got, sizeof(got)));
    for (int i = 0; i < WAYS; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
