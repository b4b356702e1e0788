#define _GNU_SOURCE
#include "pager/recovery.h"

#include "pager/events.h"
#include "pager/userfault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* All that a process may use, but for the lowest pages, of which the kernel wants to hear nothing. */
static const uint64_t WAKE_START = 0x10000, WAKE_END = 0x7ffffffff000;

struct recovery {
    struct lm_pager *pager;
    struct lm_ledger old;
    const struct lm_recovered *found;
    size_t count;
};

int lm_pager_facts(int ledger, struct lm_ledger_facts *facts, void *note, size_t room) {
    struct lm_ledger_head head;
    if (pread(ledger, &head, sizeof head, 0) != sizeof head || head.layout != LM_LEDGER_LAYOUT)
        return -EPROTO;
    const struct lm_ledger_note *kept = &head.notes[head.current_note & 1];
    *facts = (struct lm_ledger_facts){.pid = head.pid,
                                      .worker = head.worker,
                                      .counts = head.active && !head.abandoned,
                                      .complete = head.complete,
                                      .note = kept->length};
    if (room > kept->length)
        room = kept->length;
    return pread(ledger, note, room, (off_t)kept->place) == (ssize_t)room ? 0 : -EIO;
}

int lm_pager_abandon(int ledger) {
    const uint32_t yes = 1;
    ssize_t size = pwrite(ledger, &yes, sizeof yes, offsetof(struct lm_ledger_head, abandoned));
    return size == sizeof yes ? 0 : -EIO;
}

/* What we have of a userfaultfd of theirs; -1: nothing. */
static int ours(const struct recovery *recovery, int descriptor) {
    for (size_t i = 0; i < recovery->count; i++)
        if (recovery->found[i].there == descriptor)
            return recovery->found[i].here;
    return -1;
}

static struct lm_space *find(const struct recovery *recovery, int descriptor) {
    const int here = ours(recovery, descriptor);
    for (size_t i = 0; here >= 0 && i < recovery->pager->space_count; i++)
        if (recovery->pager->spaces[i]->userfault == here)
            return recovery->pager->spaces[i];
    return NULL;
}

static int recover_range(struct recovery *recovery, struct lm_space *space,
                         const struct lm_ledger_range *from) {
    const uint64_t pages = (from->end - from->start) / LM_PAGE_SIZE;
    uint64_t ignored = 0;
    const struct lm_page_table before = lm_page_table_view(&recovery->old, from->table, &ignored);
    struct lm_range range = {.start = from->start,
                             .end = from->end,
                             .source = from->source,
                             .source_space = from->source_space,
                             .kind = from->kind};
    if (from->first + pages > before.pages)
        return -EPROTO;
    range.table = lm_page_table_create(recovery->pager->ledger, pages, &recovery->pager->wanted);
    if (!range.table)
        return -ENOMEM;
    /* What was on its way is missing, or it is there and found to be. */
    int error = lm_page_table_take(range.table, 0, &before, from->first, pages, ~LM_STATES_WANTED);
    if (!error)
        error = lm_space_insert(space, &range);
    if (error)
        lm_page_table_release(range.table);
    return error;
}

static int recover_space(struct recovery *recovery, uint32_t place) {
    const struct lm_ledger_space *from = lm_ledger_space(&recovery->old, place);
    const struct lm_ledger_copy *copy = lm_ledger_ranges(&recovery->old, place);
    const int here = ours(recovery, from->descriptor);
    /* Its id may be another process's by now. */
    if (!copy || here < 0 || (from->pid && !lm_keeper_is_alive(here)))
        return 0;
    struct lm_space *space = lm_pager_open_space(recovery->pager, from->number, here, from->pid);
    if (!space)
        return errno == ENOENT ? 0 : -errno;
    const struct lm_ledger_range *ranges = lm_ledger_at(&recovery->old, copy->ranges);
    int error = 0;
    for (uint64_t i = 0; !error && i < copy->count; i++)
        error = recover_range(recovery, space, &ranges[i]);
    return error;
}

/* What was read and is not in the ranges yet. Events that were half applied are applied again. */
static int apply_slot(struct recovery *recovery, const struct lm_ledger_slot *slot) {
    struct lm_space *space = find(recovery, slot->descriptor);
    int error = 0;
    for (size_t i = 0; space && !error && i < LM_MESSAGES && slot->messages[i].event; i++) {
        struct uffd_msg message = slot->messages[i];
        if (message.event == UFFD_EVENT_PAGEFAULT)
            continue;
        if (message.event == UFFD_EVENT_FORK) {
            int child = ours(recovery, (int)message.arg.fork.ufd);
            if (child < 0)
                return -EBADF;
            message.arg.fork.ufd = (uint32_t)child;
        }
        error = lm_events_apply(recovery->pager, space, &message);
    }
    return error;
}

static int recover(struct recovery *recovery) {
    const struct lm_ledger_commit *commit = lm_ledger_committed(&recovery->old);
    int error = 0;
    recovery->pager->children = commit->children;
    for (uint32_t i = 0; !error && i < commit->spaces; i++)
        error = recover_space(recovery, i);
    const struct lm_ledger_slot *slot;
    for (uint64_t place = commit->applied; !error && (slot = lm_ledger_slot(recovery->old.base, place));
         place++)
        error = apply_slot(recovery, slot);
    return error ? error : recovery->pager->space_count ? 0 : -ESRCH;
}

int lm_pager_recover(struct lm_pager *pager, int ledger, const struct lm_recovered *found, size_t count) {
    struct recovery recovery = {.pager = pager, .found = found, .count = count};
    int error = lm_ledger_map(&recovery.old, ledger);
    if (error)
        return error;
    lm_pager_lock_patient(pager);
    error = recover(&recovery);
    if (!error) {
        lm_ledger_head(pager->ledger)->predecessor = ledger;
        pager->prefetching = true;
    }
    lm_pager_unlock(pager);
    lm_ledger_unmap(&recovery.old);
    if (!error)
        lm_status_set(&pager->status, LM_PAGER_STALLED, "%s", "the pager was replaced");
    return error;
}

void lm_recovery_settle(struct lm_pager *pager) {
    struct lm_ledger_head *head = lm_ledger_head(pager->ledger);
    const int predecessor = head->predecessor;

    __atomic_store_n(&head->active, 1, __ATOMIC_SEQ_CST);
    if (predecessor < 0)
        return;
    /* What cannot be written now the keeper writes, should we die. */
    if (lm_pager_abandon(predecessor))
        return;
    __atomic_store_n(&head->predecessor, -1, __ATOMIC_SEQ_CST);
    close(predecessor);
    for (size_t i = 0; i < pager->space_count; i++)
        lm_userfault_wake(pager->spaces[i]->userfault, WAKE_START, WAKE_END - WAKE_START);
}
