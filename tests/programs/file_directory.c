/*
 * feature: open directories, with their position, and paths relative to them
 * restore: --allow-uid root --allow-path / --max-memory 1G
 */
#include "check.h"
#include <dirent.h>

int main(int argc, char **argv) {
    char name[32];
    int seen[100] = {0};
    check_start(argc, argv);
    SYS(mkdir(check_path("many"), 0755));
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "many/%d", i);
        close(SYS(open(check_path(name), O_WRONLY | O_CREAT, 0600)));
    }
    int directory = SYS(open(check_path("many"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *stream = opendir(check_path("many"));
    CHECK(stream, "opendir: %s", strerror(errno));
    for (int i = 0; i < 30; i++) {
        struct dirent *entry = readdir(stream);
        if (entry->d_name[0] != '.')
            seen[atoi(entry->d_name)]++;
    }
    check_move();
    for (struct dirent *entry; (entry = readdir(stream));)
        if (entry->d_name[0] != '.')
            seen[atoi(entry->d_name)]++;
    for (int i = 0; i < 100; i++)
        CHECK(seen[i] == 1, "entry %d was seen %d times", i, seen[i]);
    SYS(faccessat(directory, "42", F_OK, 0));
    close(SYS(openat(directory, "new", O_WRONLY | O_CREAT, 0600)));
    SYS(access(check_path("many/new"), F_OK));
    /* Between two mounts of one file system that fails. */
    SYS(renameat(directory, "new", AT_FDCWD, check_path("renamed")));
    SYS(fchdir(directory));
    SYS(access("99", F_OK));
    return check_passed();
}
