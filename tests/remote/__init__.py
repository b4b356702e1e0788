"""lm-migrate: over a real sshd, in a host of its own."""
