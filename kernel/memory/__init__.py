"""The memory of processes as the kernel shows it: mappings, pages, what is written to."""
