"""The descriptors of a process: everything that the rest of the program uses of them.

On the source: `look_descriptors` (live, then frozen with the live look as `previous`),
`descriptor_obstacles`, `passing_obstacles`, `flush_written_files`, and after COMMIT `retire_sockets`. On
the destination: `preflight_descriptors`, `open_descriptors` from the table of the live look,
`update_descriptors` with that of the frozen one, `descriptor_changes` for the numbers,
`compare_written_files`, and inside the process `descriptor_rows`, `listen_rows` and `seal_descriptors`.
"""

from process.descriptor_obstacles import (
    compare_written_files,
    descriptor_obstacles,
    passing_obstacles,
    preflight_descriptors,
)
from process.descriptor_options import DescriptorOptions
from process.descriptor_rows import descriptor_rows, listen_rows
from process.descriptor_table import Description, Descriptor, Table
from process.look_descriptors import Look, look_descriptors
from process.open_descriptors import (
    DescriptorChanges,
    OpenedDescriptors,
    descriptor_changes,
    flush_written_files,
    open_descriptors,
    seal_descriptors,
    update_descriptors,
)
from process.retire import retire_sockets

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
    "descriptor_rows",
    "flush_written_files",
    "listen_rows",
    "look_descriptors",
    "open_descriptors",
    "passing_obstacles",
    "preflight_descriptors",
    "retire_sockets",
    "seal_descriptors",
    "update_descriptors",
]
