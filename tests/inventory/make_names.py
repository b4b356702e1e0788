"""Writes names.tsv: the names and numbers of the kernel's headers for which the inventory needs a row.

    python -m tests.inventory.make_names FOLDER

FOLDER has the headers of one kernel, for x86-64: `lib/libc/include/any-linux-any` and `x86-linux-any` of the `ziglang`
wheel (PyPI, 0.17.1: those of Linux 7.2), copied over each other. Debian's own are older than the kernels that run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "names.tsv"
# Header, what its names begin with, and beginnings of names in it that are values or masks and nothing to be kept.
HEADERS = (
    ("linux/prctl.h", ("PR_",), (
        "PR_UNALIGN", "PR_FP", "PR_TIMING_", "PR_ENDIAN", "PR_MCE_KILL_", "PR_SPEC_", "PR_SET_MM_",
        "PR_CAP_AMBIENT_", "PR_PAC_", "PR_SVE_", "PR_SME_", "PR_TAGGED_ADDR_ENABLE", "PR_MTE_",
        "PR_SET_PTRACER_ANY", "PR_MDWE_", "PR_RISCV_V_", "PR_RISCV_CTX", "PR_RISCV_SCOPE", "PR_SCHED_CORE_",
        "PR_SYS_DISPATCH", "PR_PPC_", "PR_TSC_", "PR_DEXCR", "PR_THP_", "PR_TIMER_CREATE_RESTORE_IDS_",
        "PR_FUTEX_HASH_", "PR_RSEQ_SLICE_EXT_", "PR_RSEQ_SLICE_EXTENSION_", "PR_CFI", "PR_PMLEN",
        "PR_SHADOW_STACK_", "PR_SET_VMA_", "PR_SYS_",
    )),
    ("asm/socket.h", ("SO_",), (
        "SO_GET_FILTER",
    )),
    ("linux/tcp.h", ("TCP_",), (
        "TCP_FLAG", "TCP_MSS_", "TCP_REPAIR_ON", "TCP_REPAIR_OFF", "TCP_CA_", "TCP_ACCECN", "TCP_MD5SIG_",
        "TCP_AO_KEYF", "TCP_AO_MAXKEYLEN", "TCP_RECEIVE_ZEROCOPY", "TCP_CM_INQ", "TCP_DATA_OFFSET", "TCP_RESERVED",
    )),
    ("linux/in.h", ("IP_", "MCAST_",), (
        "IP_PMTUDISC", "IP_DEFAULT", "MCAST_EXCLUDE", "MCAST_INCLUDE", "IP_MSFILTER_SIZE",
    )),
    ("linux/in6.h", ("IPV6_",), (
        "IPV6_PMTUDISC", "IPV6_FL_", "IPV6_FLOWINFO_FLOW", "IPV6_FLOWINFO_PRI", "IPV6_PRIORITY", "IPV6_TLV",
        "IPV6_PREFER", "IPV6_SRCRT", "IPV6_UNICAST_IF_",
    )),
    ("linux/fcntl.h", ("F_",), (
        "F_RDLCK", "F_WRLCK", "F_UNLCK", "F_EXLCK", "F_SHLCK", "F_OWNER_", "F_SEAL_",
    )),
    ("asm/mman.h", ("MADV_",), (
    )),
    ("asm/resource.h", ("RLIMIT_",), (
    )),
    ("linux/sched.h", ("CLONE_",), (
        "CLONE_ARGS",
    )),
    ("linux/membarrier.h", ("MEMBARRIER_",), (
        "MEMBARRIER_CMD_FLAG", "MEMBARRIER_CMD_SHARED",
    )),
)  # fmt: skip
# Flags of mappings in /proc/PID/smaps stand in no header: proc_pid_smaps(5), and show_smap_vma_flags in
# fs/proc/task_mmu.c of Linux 6.18.
VM_FLAGS = "rd wr ex sh mr mw me ms gd pf lo io sr rr dc de ac nr ht sf wf dd sd mm hg nh mg um uw ui ss sl lf dp gu"


def names_in(text: str, beginnings: tuple[str, ...], left_out: tuple[str, ...]) -> list[str]:
    """The names that a header defines, by #define or in an enumeration."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"^\s*(?:#\s*define\s+)?([A-Z][A-Z0-9_]+)(?:\s*=|[ \t]+\S)", text, re.MULTILINE)
    wanted = {name for name in found if name.startswith(beginnings) and not name.startswith(left_out)}
    return sorted(name for name in wanted if not name.startswith("_"))


def numbers_of(folder: Path, header: str, text: str, names: list[str]) -> dict[str, int]:
    """Their values, as the compiler knows them."""
    # An #ifdef, for what stands in a part that is switched off.
    macros = set(re.findall(r"#\s*define\s+(\w+)", text))
    lines = "".join(
        f"#ifdef {name}\n" * (name in macros)
        + f'printf("{name} %lld\\n", (long long)({name}));\n'
        + "#endif\n" * (name in macros)
        for name in names
    )
    code = f"#include <stdio.h>\n#include <{header}>\nint main(void) {{\n{lines}}}\n"
    program = folder / "numbers"
    command = ["gcc", "-isystem", str(folder), "-x", "c", "-", "-o", str(program)]
    subprocess.run(command, input=code, text=True, check=True)
    told = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    program.unlink()
    return {line.split()[0]: int(line.split()[1]) for line in told.splitlines()}


def main(folder: Path) -> None:
    """Write the list."""
    rows = []
    for header, beginnings, left_out in HEADERS:
        text = "\n".join((folder / path).read_text() for path in (header, *included(folder, header)))
        names = names_in(text, beginnings, left_out)
        numbers = numbers_of(folder, header, text, names)
        rows += [f"{name}\t{number}\t{header}" for name, number in numbers.items()]
    rows += [f"VmFlags_{flag}\t0\tproc_pid_smaps(5)" for flag in VM_FLAGS.split()]
    TARGET.write_text("\n".join(rows) + "\n")


def included(folder: Path, header: str) -> list[str]:
    """The headers that one consists of."""
    found = re.findall(r"#\s*include\s+<(asm[\w-]*/[\w.-]+)>", (folder / header).read_text())
    return [each for name in found if (folder / name).exists() for each in (name, *included(folder, name))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
