/* What the pager writes into its ledger: the ranges of its spaces, whenever they change. */
#ifndef LM_PAGER_RECORD_H
#define LM_PAGER_RECORD_H

#include "pager/paging.h"

/* Record the ranges that have changed, and that so many more slots of events are applied. Lock held. Returns 0 or -ENOMEM. */
int lm_record(struct lm_pager *pager, uint64_t applied);

/* cffi: begin */
/* Keep a note for whoever goes on after us. Returns 0 or -errno. */
int lm_pager_note(struct lm_pager *pager, const void *note, size_t length);
/* cffi: end */

#endif
