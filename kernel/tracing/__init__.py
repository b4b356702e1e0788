"""ptrace(2): threads are stopped, read, and released."""
