/*
 * feature: memory that is to be merged (PR_SET_MEMORY_MERGE), but for the mappings that are left out (MADV_UNMERGEABLE)
 * limits: before Linux 6.15, that it changes between the last snapshot and the freeze is missed for single mappings
 */
#include "check.h"
#include <sys/prctl.h>

#define LENGTH (64 << 10)

/* Whether VmFlags has "mg" for the mapping that begins at an address. */
static bool is_mergeable(const char *start) {
    char line[600];
    unsigned long at, end;
    bool there = false, found = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    CHECK(file != NULL, "smaps: %s", strerror(errno));
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%lx-%lx ", &at, &end) == 2)
            there = at <= (unsigned long)start && (unsigned long)start < end;
        else if (there && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, " mg") != NULL;
    }
    fclose(file);
    return found;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    bool possible = prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) == 0;
    char *merged = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(merged != MAP_FAILED, "mmap: %s", strerror(errno));
    if (possible)
        SYS(madvise(merged + LENGTH / 2, LENGTH / 2, MADV_UNMERGEABLE));
    memset(merged, 7, LENGTH);
    check_move();
    CHECK(is_mergeable(merged) == possible, "memory is not merged any more");
    CHECK(!is_mergeable(merged + LENGTH / 2), "memory that was left out is merged");
    return check_passed();
}
