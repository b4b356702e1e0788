#include "pager/record.h"

#include <errno.h>

static int record_space(struct lm_ledger *ledger, uint32_t place, struct lm_space *space) {
    size_t paged = 0;
    for (size_t i = 0; i < space->count; i++)
        paged += space->ranges[i].table != NULL;
    struct lm_ledger_range *ranges = lm_ledger_write(ledger, place, paged);
    if (!ranges)
        return -ENOMEM;
    for (size_t i = 0; i < space->count; i++) {
        const struct lm_range *range = &space->ranges[i];
        if (range->table)
            *ranges++ = (struct lm_ledger_range){.start = range->start,
                                                 .end = range->end,
                                                 .source = range->source,
                                                 .source_space = range->source_space,
                                                 .kind = range->kind,
                                                 .table = range->table->place,
                                                 .first = range->first};
    }
    struct lm_ledger_space *record = lm_ledger_space(ledger, place);
    record->number = space->number;
    record->descriptor = space->userfault;
    record->pid = space->pid;
    space->recorded = true;
    return 0;
}

int lm_record(struct lm_pager *pager, uint64_t applied) {
    if (pager->space_count > LM_LEDGER_SPACES)
        return -ENOMEM;
    for (uint32_t i = 0; i < pager->space_count; i++) {
        int error = pager->spaces[i]->recorded ? 0 : record_space(pager->ledger, i, pager->spaces[i]);
        if (error)
            return error;
    }
    lm_ledger_commit(pager->ledger, lm_ledger_committed(pager->ledger)->applied + applied,
                     (uint32_t)pager->space_count, pager->children);
    return 0;
}

int lm_pager_note(struct lm_pager *pager, const void *note, size_t length) {
    lm_pager_lock_patient(pager);
    int error = lm_ledger_note(pager->ledger, note, length);
    lm_pager_unlock(pager);
    return error;
}
