/* Which of our threads go first where there are more threads than processors. */
#ifndef LINUX_URGENCY_H
#define LINUX_URGENCY_H

/* Somebody waits for everything that the calling thread does: it runs soon when it wakes, and never for long.
 */
void lm_urgency_first(void);

/* The calling thread has much to do and nobody waits for any of it: any thread that wakes goes first. */
void lm_urgency_last(void);

#endif
