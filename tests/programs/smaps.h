/* The VmFlags of the mapping at an address, from /proc/self/smaps. */
#ifndef SMAPS_H
#define SMAPS_H

#include "check.h"

/* Without the flags that come and go by themselves: sd is soft-dirty; um, uw belong to a userfaultfd. */
static inline char *vm_flags(const void *address) {
    FILE *file = fopen("/proc/self/smaps", "re");
    char line[1000];
    unsigned long start, end;
    bool inside = false;
    CHECK(file, "/proc/self/smaps: %s", strerror(errno));
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = (unsigned long)address >= start && (unsigned long)address < end;
        if (!inside || strncmp(line, "VmFlags:", 8) != 0)
            continue;
        fclose(file);
        for (const char *const *flag = (const char *const[]){" sd", " um", " uw", NULL}; *flag; flag++) {
            char *found = strstr(line, *flag);
            if (found)
                memmove(found, found + 3, strlen(found + 3) + 1);
        }
        return strdup(line);
    }
    CHECK(false, "no mapping at %p", address);
}

#endif
