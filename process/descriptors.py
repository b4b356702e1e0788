"""The descriptors of a process: everything that the rest of the program uses of them.

On the source: `look_descriptors` (live, then frozen with the live look as `previous`),
`descriptor_obstacles`, `flush_written_files`. On the destination: `preflight_descriptors`,
`open_descriptors` from the table of the live look, `update_descriptors` with that of the frozen one,
`descriptor_changes` for the numbers, `compare_written_files`.
"""

from process.descriptor_obstacles import compare_written_files, descriptor_obstacles, preflight_descriptors
from process.descriptor_options import DescriptorOptions
from process.descriptor_table import Description, Descriptor, Table
from process.look_descriptors import Look, look_descriptors
from process.open_descriptors import (
    DescriptorChanges,
    OpenedDescriptors,
    descriptor_changes,
    flush_written_files,
    open_descriptors,
    update_descriptors,
)

__all__ = [
    "Description",
    "Descriptor",
    "DescriptorChanges",
    "DescriptorOptions",
    "Look",
    "OpenedDescriptors",
    "Table",
    "compare_written_files",
    "descriptor_changes",
    "descriptor_obstacles",
    "flush_written_files",
    "look_descriptors",
    "open_descriptors",
    "preflight_descriptors",
    "update_descriptors",
]
