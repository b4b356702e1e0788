/*
 * The text of /proc/PID/maps and /proc/PID/smaps taken apart (proc_pid_maps(5), proc_pid_smaps(5)): a process
 * may have tens of thousands of lines.
 */
#ifndef LM_KERNEL_MAPS_H
#define LM_KERNEL_MAPS_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* What is known of one mapping, as LM_MAP_COLUMNS numbers. Those that end in AT are offsets into the text,
 * the lengths are in bytes; the permissions are 4 characters. The flags, of smaps alone, have length 0 where
 * there are none. */
#define LM_MAP_START 0
#define LM_MAP_END 1
#define LM_MAP_OFFSET 2
#define LM_MAP_INODE 3
#define LM_MAP_PERMISSIONS_AT 4
#define LM_MAP_DEVICE_AT 5
#define LM_MAP_DEVICE_LENGTH 6
#define LM_MAP_PATH_AT 7
#define LM_MAP_PATH_LENGTH 8
#define LM_MAP_FLAGS_AT 9
#define LM_MAP_FLAGS_LENGTH 10
#define LM_MAP_COLUMNS 11

/* Mappings in `text`, at most; then fill `columns`, room for that many. Returns the number of mappings,
 * -EBADMSG for a text that is none. */
size_t lm_maps_bound(const char *text, size_t length);
long lm_maps_parse(const char *text, size_t length, uint64_t *columns, size_t capacity);
/* cffi: end */

#endif
