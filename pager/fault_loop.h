#ifndef LM_PAGER_FAULT_LOOP_H
#define LM_PAGER_FAULT_LOOP_H

/* The thread that answers faults and events; `pager` is a struct lm_pager. */
void *lm_fault_main(void *pager);

#endif
