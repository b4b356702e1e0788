"""What the kernel offers: tracees, syscall programs, userfaultfd, pagemap, /proc and probes."""
