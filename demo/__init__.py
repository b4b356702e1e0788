"""make demo: a server with a few hundred MiB moves between two machines while a client talks to it."""
