"""ptrace(2): threads stopped, looked into, and let go."""
