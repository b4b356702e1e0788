/* Memory: mappings of every kind, their protection, flags and content. */
#include "observer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define PAGE 4096ul
#define SLOTS 12
#define PAGES 32 /* the largest mapping of a slot */
#define PLACE 0x200000000000ul
#define APART (PAGES * 4 * PAGE)

static struct slot {
    size_t pages;
    int protection[PAGES];
    uint64_t tag
        [PAGES]; /* the first and last word of each page, 0 for one of zeros; UNKNOWN for what may be either */
    bool shared, of_file, of_memfd;
    char lock
        [PAGES]; /* what /proc/self/smaps has to say of it: 'l' locked, 'f' locked on fault, 0 not locked */
} slots[SLOTS];

static char *place_of(size_t slot) {
    return (char *)(PLACE + slot * APART);
}

static void write_tag(size_t slot, size_t page, uint64_t tag) {
    uint64_t *words = (uint64_t *)(place_of(slot) + page * PAGE);
    if (!(slots[slot].protection[page] & PROT_WRITE))
        return;
    words[0] = words[PAGE / 8 - 1] = tag;
    slots[slot].tag[page] = tag;
}

static int file_for(struct draw *from, size_t slot, size_t length, bool *memory) {
    char path[512];
    *memory = draw(from, 2);
    snprintf(path, sizeof(path), "%s/mapped-%zu-%d", folder(), slot, (int)draw(from, 3));
    int file =
        *memory ? memfd_create("observed", MFD_CLOEXEC) : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0 && ftruncate(file, (off_t)length) != 0)
        _exit(4);
    return file;
}

static void change_mapping(struct draw *from) {
    static const int more[] = {0, 0, MAP_NORESERVE, MAP_POPULATE, MAP_LOCKED, MAP_STACK, MAP_GROWSDOWN};
    size_t number = draw(from, SLOTS), pages = 1 + draw(from, PAGES);
    struct slot *slot = &slots[number];
    if (slot->pages) {
        did("munmap(%p, %#lx) = %d", (void *)place_of(number), slot->pages * PAGE,
            munmap(place_of(number), slot->pages * PAGE));
        slot->pages = 0;
        if (draw(from, 3) == 0)
            return;
    }
    int flags = MAP_FIXED, file = -1, protection = PROT_READ | PROT_WRITE | (draw(from, 8) ? 0 : PROT_EXEC);
    bool memory = false;
    size_t before = draw(from, 2) ? draw(from, 4) * PAGE : 0; /* where in the file it begins */
    slot->shared = draw(from, 3) == 0;
    slot->of_file = draw(from, 3) == 0;
    flags |= slot->shared ? MAP_SHARED : MAP_PRIVATE;
    if (slot->of_file)
        file = file_for(from, number, before + pages * PAGE, &memory);
    else
        flags |= MAP_ANONYMOUS | (slot->shared ? 0 : DRAW_OF(from, more));
    void *made =
        mmap(place_of(number), pages * PAGE, protection, flags, file, slot->of_file ? (off_t)before : 0);
    did("mmap(%p, %#lx, %#x, %#x, %s) = %p", (void *)place_of(number), pages * PAGE, (unsigned)protection,
        (unsigned)flags,
        file < 0 ? "-"
        : memory ? "memfd"
                 : "file",
        made);
    /* A memfd that only a mapping leads to is refused. */
    if (memory && !may_be_refused())
        put_descriptor(file, FIRST_DESCRIPTOR + DESCRIPTORS + 20 + (int)number);
    else if (file >= 0)
        close(file);
    if (made == MAP_FAILED)
        return;
    slot->pages = pages;
    slot->of_memfd = memory;
    for (size_t i = 0; i < pages; i++) {
        const uint64_t *words = (uint64_t *)(place_of(number) + i * PAGE);
        slot->protection[i] = protection;
        slot->tag[i] = words[0];
        slot->lock[i] = flags & MAP_LOCKED ? 'l' : 0;
    }
    for (uint64_t i = draw(from, pages + 1); i; i--)
        write_tag(number, draw(from, pages), draw(from, UINT64_MAX - 1) + 1);
}

/* Grows, shrinks, or moves to another slot that is empty; one call of mremap(2) does that to one mapping only. */
static void change_size(struct draw *from) {
    size_t number = draw(from, SLOTS), other = draw(from, SLOTS), pages = 1 + draw(from, PAGES);
    struct slot *slot = &slots[number];
    bool moves = draw(from, 3) == 0;
    /* The descriptor of a memfd has the number of its slot. */
    if (!slot->pages || (moves && (slots[other].pages || slot->of_memfd)) ||
        (!moves && (slot->shared || slot->of_file)))
        return;
    if (moves)
        pages = slot->pages;
    void *made = moves ? mremap(place_of(number), pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                                place_of(other))
                       : mremap(place_of(number), slot->pages * PAGE, pages * PAGE, 0);
    did("mremap(slot %zu, %zu to %zu pages%s%zu) = %p", number, slot->pages, pages,
        moves ? ", to slot " : ", not to slot ", other, made);
    if (made == MAP_FAILED)
        return;
    for (size_t i = slot->pages; i < pages; i++) {
        slot->protection[i] = slot->protection[0];
        slot->lock[i] = slot->lock[0];
        slot->tag[i] = 0;
    }
    slot->pages = pages;
    if (moves) {
        slots[other] = *slot;
        slot->pages = 0;
    }
}

/* A range of pages of a slot that is mapped; false if none is. */
static bool draw_range(struct draw *from, size_t *number, size_t *first, size_t *count) {
    *number = draw(from, SLOTS);
    if (!slots[*number].pages)
        return false;
    *first = draw(from, slots[*number].pages);
    *count = 1 + draw(from, slots[*number].pages - *first);
    return true;
}

static void change_protection(struct draw *from) {
    static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
                                      PROT_READ | PROT_EXEC};
    size_t number, first, count;
    if (!draw_range(from, &number, &first, &count))
        return;
    int protection = DRAW_OF(from, protections);
    int result = mprotect(place_of(number) + first * PAGE, count * PAGE, protection);
    did("mprotect(slot %zu, %zu, %zu pages, %d) = %d", number, first, count, protection, result);
    for (size_t i = first; result == 0 && i < first + count; i++)
        slots[number].protection[i] = protection;
}

static void change_content(struct draw *from) {
    size_t number, first, count;
    if (!draw_range(from, &number, &first, &count))
        return;
    did("written: slot %zu, %zu, %zu pages", number, first, count);
    for (size_t i = first; i < first + count; i++)
        write_tag(number, i, draw(from, UINT64_MAX - 1) + 1);
}

static void change_advice(struct draw *from) {
    static const int lasting[] = {MADV_NORMAL,      MADV_RANDOM,     MADV_SEQUENTIAL, MADV_DONTFORK,
                                  MADV_DOFORK,      MADV_HUGEPAGE,   MADV_NOHUGEPAGE, MADV_DONTDUMP,
                                  MADV_DODUMP,      MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_MERGEABLE,
                                  MADV_UNMERGEABLE, MADV_COLD,       MADV_PAGEOUT,    MADV_WILLNEED};
    size_t number, first, count;
    if (!draw_range(from, &number, &first, &count))
        return;
    struct slot *slot = &slots[number];
    bool discards = draw(from, 6) == 0 && !slot->shared && !slot->of_file;
    /* What lasts may be missed between the last snapshot and the freeze. */
    if (!discards && is_being_moved())
        return;
    int advice = discards ? MADV_DONTNEED : DRAW_OF(from, lasting);
    int result = madvise(place_of(number) + first * PAGE, count * PAGE, advice);
    did("madvise(slot %zu, %zu, %zu pages, %d) = %d", number, first, count, advice, result);
    for (size_t i = first; discards && result == 0 && i < first + count; i++)
        slot->tag[i] = 0;
}

static void change_lock(struct draw *from) {
    size_t number, first, count;
    if (!draw_range(from, &number, &first, &count))
        return;
    char *start = place_of(number) + first * PAGE;
    int kind = (int)draw(from, 3);
    long result = kind == 0   ? mlock(start, count * PAGE)
                  : kind == 1 ? syscall(SYS_mlock2, start, count * PAGE, 1 /* MLOCK_ONFAULT */)
                              : munlock(start, count * PAGE);
    did("%s(slot %zu, %zu, %zu pages) = %ld",
        kind == 0   ? "mlock"
        : kind == 1 ? "mlock2"
                    : "munlock",
        number, first, count, result);
    /* It may be locked although not all pages could be had, or may not (mlock(2), ENOMEM). */
    if (result != 0 && munlock(start, count * PAGE) == 0)
        kind = 2, result = 0;
    for (size_t i = first; result == 0 && i < first + count; i++)
        slots[number].lock[i] = kind == 0 ? 'l' : kind == 1 ? 'f' : 0;
}

static void change_name(struct draw *from) {
    size_t number, first, count;
    char name[32];
    if (!draw_range(from, &number, &first, &count))
        return;
    snprintf(name, sizeof(name), "name-%d", (int)draw(from, 100));
    int result = prctl(0x53564d41 /* PR_SET_VMA */, 0, place_of(number) + first * PAGE, count * PAGE,
                       draw(from, 4) ? name : NULL);
    did("prctl(PR_SET_VMA, slot %zu, %zu, %zu pages, %s) = %d", number, first, count, name, result);
}

/* Not compared: the policy of a mapping is not taken along. */
static void change_policy(struct draw *from) {
    size_t number, first, count;
    unsigned long node = 1;
    if (!draw_range(from, &number, &first, &count))
        return;
    int policy = (int)draw(from, 4);
    long result = syscall(SYS_mbind, place_of(number) + first * PAGE, count * PAGE, policy,
                          policy ? &node : NULL, policy ? 64 : 0, 0);
    did("mbind(slot %zu, %zu, %zu pages, %d) = %ld", number, first, count, policy, result);
}

static void change_break(struct draw *from) {
    static char *base;
    if (!base)
        base = sbrk(0);
    /* The C library's heap stands below, and grows by mappings when it finds the break moved. */
    char *wanted = base + draw(from, 64) * PAGE;
    long result = syscall(SYS_brk, wanted);
    did("brk(%p) = %#lx", (void *)wanted, result);
}

static void observe_content(struct report *report) {
    for (size_t number = 0; number < SLOTS; number++) {
        for (size_t i = 0; i < slots[number].pages; i++) {
            const uint64_t *words = (uint64_t *)(place_of(number) + i * PAGE);
            uint64_t tag = slots[number].tag[i];
            if (!(slots[number].protection[i] & PROT_READ) || (words[0] == tag && words[PAGE / 8 - 1] == tag))
                continue;
            char key[64];
            snprintf(key, sizeof(key), "slot %zu page %zu", number, i);
            say(report, key, "%llx %llx, not %llx", (unsigned long long)words[0],
                (unsigned long long)words[PAGE / 8 - 1], (unsigned long long)tag);
        }
    }
}

/* One mapping of /proc/self/smaps. */
struct mapping {
    unsigned long start, end, offset;
    bool of_file;
    char rest[400]; /* protection and name */
    char flags[200];
};

static bool goes_on(const struct mapping *first, const struct mapping *second) {
    unsigned long offset = first->of_file ? first->offset + (first->end - first->start) : 0;
    return first->end == second->start && strcmp(first->rest, second->rest) == 0 &&
           strcmp(first->flags, second->flags) == 0 && offset == second->offset;
}

static void say_mapping(struct report *report, const struct mapping *one) {
    char key[64];
    if (one->end == one->start)
        return;
    snprintf(key, sizeof(key), "mapping %lx-%lx", one->start, one->end);
    say(report, key, "%s offset %lx flags %s", one->rest, one->offset, one->flags);
}

/* The flags without those that tell of the migration itself: uw and um are of its userfaultfd, sd says that pages were
 * written. While pages are missing, locked memory is locked on fault (lf): see observe_locks. What
 * counts for overcommitting (ac) is not taken along for memory that may not be written to any more. */
static void keep_flags(char *into, size_t size, char *line) {
    into[0] = 0;
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (strcmp(word, "uw") != 0 && strcmp(word, "um") != 0 && strcmp(word, "sd") != 0 &&
            strcmp(word, "lf") != 0 && strcmp(word, "ac") != 0)
            snprintf(into + strlen(into), size - strlen(into), "%s ", word);
}

/* Is a page locked as it was asked to be? Told only when all pages have come. */
static void observe_locks(struct report *report, const struct mapping *one, const char *flags) {
    char seen = strstr(flags, " lf") ? 'f' : strstr(flags, " lo") ? 'l' : 0, key[64];
    for (unsigned long at = one->start; at < one->end; at += PAGE) {
        size_t number = (at - PLACE) / APART, page = (at - PLACE) % APART / PAGE;
        if (at < PLACE || number >= SLOTS || page >= slots[number].pages || slots[number].lock[page] == seen)
            continue;
        snprintf(key, sizeof(key), "slot %zu page %zu lock", number, page);
        say(report, key, "'%c', not '%c'", seen ? seen : '-',
            slots[number].lock[page] ? slots[number].lock[page] : '-');
    }
}

/* The layout, with neighbours that are alike taken together: whether the kernel keeps them as one is its own affair. */
static void observe_layout(struct report *report) {
    FILE *file = fopen("/proc/self/smaps", "re");
    char line[600];
    struct mapping last = {0}, present = {0};
    if (!file)
        return;
    setvbuf(file, NULL, _IOFBF, 4096);
    while (fgets(line, sizeof(line), file)) {
        char protection[8] = "", device[16] = "";
        unsigned long inode, start, end, offset;
        int name = 0;
        /* Other lines may begin with a hexadecimal digit too ("AnonHugePages"). */
        if (sscanf(line, "%lx-%lx %7s %lx %15s %lu %n", &start, &end, protection, &offset, device, &inode,
                   &name) == 6) {
            line[strcspn(line, "\n")] = 0;
            present = (struct mapping){.start = start, .end = end, .offset = offset};
            snprintf(present.rest, sizeof(present.rest), "%s %.380s", protection, line + name);
            present.of_file = inode != 0;
            if (inode == 0)
                present.offset = 0;
        } else if (strncmp(line, "VmFlags: ", 9) == 0) {
            if (is_complete())
                observe_locks(report, &present, line + 8);
            keep_flags(present.flags, sizeof(present.flags), line + 9);
            if (goes_on(&last, &present)) {
                last.end = present.end;
            } else {
                say_mapping(report, &last);
                last = present;
            }
        }
    }
    fclose(file);
    say_mapping(report, &last);
    say(report, "break", "%#lx", syscall(SYS_brk, 0));
}

static const struct aspect mapping = {"mmap", false, change_mapping, observe_layout};
static const struct aspect size = {"mremap", false, change_size, NULL};
static const struct aspect content = {"content", false, change_content, observe_content};
static const struct aspect protection = {"mprotect", false, change_protection, NULL};
static const struct aspect advice = {"madvise", false, change_advice, NULL};
static const struct aspect lock = {"mlock", false, change_lock, NULL};
static const struct aspect name = {"names", false, change_name, NULL};
static const struct aspect policy = {"mbind", false, change_policy, NULL};
static const struct aspect program_break = {"brk", false, change_break, NULL};

const struct aspect *const memory_aspects[] = {
    &mapping, &mapping, &size, &content, &protection, &advice, &lock, &name, &policy, &program_break, NULL};
