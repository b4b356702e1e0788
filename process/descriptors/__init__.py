"""The descriptors of a process, one file per kind of kernel object."""
