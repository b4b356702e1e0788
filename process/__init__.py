"""The parts of a process, one file per kind of kernel object: its form on the wire, how the source
describes it and how the destination restores it."""
