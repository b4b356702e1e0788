"""lm-restore: preflight, husk, resume, and the run from start to end on the destination."""
