"""Threads: registers, the system calls they are in, scheduling, and the addresses that the kernel keeps for each."""
