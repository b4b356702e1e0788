"""What the kernel keeps for a process as a whole, beside its memory and its descriptors."""
