"""The destination's memory: page table, fault loop, bulk stream, prefetch order and keeper."""
