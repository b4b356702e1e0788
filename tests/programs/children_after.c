/*
 * feature: children born after the move: fork, wait, SIGCHLD, pipes to them
 */
#include "check.h"

static volatile int deaths;

static void on_child(int number) {
    deaths += number == SIGCHLD;
}

int main(int argc, char **argv) {
    int ends[2], status;
    check_start(argc, argv);
    SYS(signal(SIGCHLD, on_child) == SIG_ERR ? -1 : 0);
    SYS(pipe(ends));
    check_move();
    for (int i = 0; i < 5; i++) {
        pid_t child = SYS(fork());
        if (child == 0) {
            check_write(ends[1], "child", 5);
            _exit(40 + i);
        }
        check_expect(ends[0], "child", 5);
        SYS(waitpid(child, &status, 0));
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + i, "child %d ended with %#x", i,
              (unsigned)status);
    }
    CHECK(deaths == 5, "SIGCHLD came %d times", deaths);
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "a child that nobody knows");
    FILE *stream = popen("echo from a shell", "r");
    char line[100] = "";
    CHECK(stream && fgets(line, sizeof(line), stream) && strcmp(line, "from a shell\n") == 0, "popen: \"%s\"",
          line);
    pclose(stream);
    return check_passed();
}
