"""The layout of an address space, what is mapped where, and the files and objects behind it."""
