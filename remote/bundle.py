"""The bundle: all of live-migration in one folder, interpreter and libraries included (`make bundle`).

It is brought to a host once, into the cache of the user there, under the SHA-256 of its list of files, and each use
begins with a comparison of every file with that list. Nothing is needed there but a shell, tar, gzip and sha256sum.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import live_migration
from live_migration.remote.ssh import Ssh
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.plain_text import one_line
from live_migration.wire.report import show_bytes

TOP = "live-migration"
PROGRAM = "lm"
"""The one program in it, whatever its links are called."""
LIST = "MANIFEST"
"""Every file with its SHA-256, as sha256sum(1) reads it."""
LIBRARY = "GLIBC"
"""The version of the C library that it needs."""
TOOLS = ("tar", "gzip", "sha256sum", "find")
ROOM = 80 << 20
"""Bytes that there have to be in the cache's file system: for a bundle, and to unpack it."""
CACHE = 'cache="${XDG_CACHE_HOME:-$HOME/.cache}/live-migration";'
BEGIN, END = "lm-begin", "lm-end"


@dataclass(frozen=True)
class Bundle:
    """A bundle of this host: an archive, or a folder that is yet to be packed; the name of its content, and the C
    library that it needs."""

    place: Path
    digest: str
    library: str


@dataclass(frozen=True)
class There:
    """What a host has said of itself.

    to_address  its address, as this host knows it; empty where ssh does not tell
    root        what goes before a command so that it runs as root
    cache       the folder of bundles there
    """

    to_address: str
    root: str
    cache: str


def bundle_at_hand(given: str | None) -> Bundle:
    """The bundle that this lm-migrate brings along: the one that was named, itself, or what `make bundle` has made in
    its tree. Raises LocalError."""
    if given is None and getattr(sys, "frozen", False):
        folder = Path(sys.executable).parent
        return _bundle(folder, (folder / LIST).read_bytes(), (folder / LIBRARY).read_bytes())
    tree = Path(live_migration.__file__).resolve().parents[1]
    archive = Path(given) if given is not None else tree / "dist" / f"{TOP}-{os.uname().machine}.tar.gz"
    if given is None and not archive.exists():
        raise _no_bundle("this installation has none", "make one with `make bundle`, and name it with --bundle")
    return read_bundle(archive)


def read_bundle(archive: Path) -> Bundle:
    """What the archive contains. Raises LocalError (SYSTEM)."""
    try:
        found = _first_files(archive)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise _no_bundle(f"{archive} is none: {error}", "name one that `make bundle` has made") from None
    return _bundle(archive, found[LIST], found[LIBRARY])


def _bundle(place: Path, files: bytes, library: bytes) -> Bundle:
    return Bundle(place, hashlib.sha256(files).hexdigest(), library.decode(errors="replace").strip())


@contextlib.contextmanager
def archive_of(bundle: Bundle) -> Iterator[Path]:
    """The bundle as an archive."""
    if not bundle.place.is_dir():
        yield bundle.place
        return
    with tempfile.TemporaryDirectory(prefix="lm-bundle-") as folder:
        archive = Path(folder, "bundle.tar.gz")
        pack(bundle.place, archive)
        yield archive


def _first_files(archive: Path) -> dict[str, bytes]:
    """The content of the two files that come first, by their names; the others are not read."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r|gz") as content:
        for name in (LIST, LIBRARY):
            member = content.next()
            file = content.extractfile(member) if member and member.name == f"{TOP}/{name}" else None
            if file is None:
                raise ValueError(f"it does not begin with {TOP}/{LIST} and {TOP}/{LIBRARY}")
            found[name] = file.read()
    return found


def pack(folder: Path, archive: Path) -> None:
    """Pack the folder of a bundle, its list first."""
    with tarfile.open(archive, "w:gz", compresslevel=6, format=tarfile.GNU_FORMAT) as content:
        names = [LIST, LIBRARY, *sorted(path.name for path in folder.iterdir() if path.name not in (LIST, LIBRARY))]
        for name in names:
            content.add(folder / name, f"{TOP}/{name}", filter=_nobodys)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member


def write_list(folder: Path) -> None:
    """Write the list of the files in the folder of a bundle."""
    lines = io.StringIO()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != LIST:
            lines.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n")
    (folder / LIST).write_text(lines.getvalue())


def bring(ssh: Ssh, bundle: Bundle) -> There:
    """Connect, look at the host, and bring the bundle there if it is not there as it should be.

    Raises LocalError, with nothing left there.
    """
    answers = _answers(ssh.first(_LOOK.replace("DIGEST", bundle.digest)), ssh.host)
    _check(answers, ssh.host, bundle)
    if answers.get("bundle") != "ready":
        free = answers.get("room", "").split()
        if len(free) >= 4 and free[3].isdecimal() and int(free[3]) * 1024 < ROOM:
            raise _unfit(
                ssh.host,
                f"its cache {answers['cache']} has room for {show_bytes(int(free[3]) * 1024)}, the bundle needs "
                f"{show_bytes(ROOM)}",
                "make room, or set XDG_CACHE_HOME there",
            )
        with archive_of(bundle) as archive:
            size = archive.stat().st_size
            done = ssh.run(_TAKE.replace("DIGEST", bundle.digest), archive)
        if done.returncode or "lm-taken" not in done.stdout:
            said = one_line(done.stderr.strip().partition("\n")[0]) or f"the shell ended with status {done.returncode}"
            raise _unfit(ssh.host, f"it does not take the bundle ({show_bytes(size)}): {said}", "remove the cause")
    addresses = answers.get("connection", "").split()
    return There(
        to_address=addresses[2] if len(addresses) == 4 else "",
        root="sudo -n " if answers["root"] == "sudo" else "",
        cache=answers["cache"],
    )


def remove(ssh: Ssh) -> str:
    """Remove the cache, and with it every bundle; a sentence about it. Raises LocalError."""
    answers = _answers(ssh.first(_CLEAN), ssh.host)
    if "busy" in answers:
        raise LocalError(
            step="removing the cache",
            object=ssh.host,
            cause=f"process {answers['busy']} runs from it",
            remedy="wait until all pages have arrived, and what files were brought for has ended (--list)",
        )
    if answers.get("cleaned") != "yes":
        raise LocalError(
            step="removing the cache",
            object=ssh.host,
            cause=f"{answers.get('cache', 'it')} cannot be removed",
            remedy="remove it there by hand",
        )
    return f"{answers['cache']} is gone from {ssh.host}"


def _answers(printed: str, host: str) -> Mapping[str, str]:
    """The lines `NAME VALUE` that a script has printed, whatever the shell's own files have printed around it."""
    found = re.search(f"^{BEGIN}$(.*)^{END}$", printed, re.MULTILINE | re.DOTALL)
    if not found:
        raise _unfit(host, "its shell does not run commands", "let this user have a shell that does")
    pairs = (line.partition(" ") for line in found[1].splitlines())
    return {name: one_line(value.strip()) for name, _, value in pairs}


def _check(answers: Mapping[str, str], host: str, bundle: Bundle) -> None:
    """Can the bundle run there? Raises LocalError."""
    here, there = os.uname(), answers.get("system", "").split()
    if there != [here.sysname, here.machine]:
        raise _unfit(host, f"it is {' '.join(there)}, this host {here.sysname} {here.machine}", "choose another host")
    has = re.fullmatch(r"glibc ([0-9.]+)", answers.get("libc", ""))
    if not has or _version(has[1]) < _version(bundle.library):
        cause = f"its C library is {answers.get('libc') or 'none of GNU'}, the bundle needs glibc {bundle.library}"
        raise _unfit(host, cause, "make the bundle on a system as old as that one (make bundle)")
    if answers.get("missing"):
        raise _unfit(host, f"it has no {answers['missing']}", "install it there")
    if answers.get("root") not in ("yes", "sudo"):
        raise LocalError(
            step="looking at the other host",
            object=host,
            cause="this user is not root there, and sudo asks for a password or is not there",
            remedy="give root@HOST, or let sudo run commands without a password",
            code=ExitCode.NO_PERMISSION,
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall("[0-9]+", text))


def _no_bundle(cause: str, remedy: str) -> LocalError:
    return LocalError(step="looking for the bundle", object="lm-migrate", cause=cause, remedy=remedy)


def _unfit(host: str, cause: str, remedy: str) -> LocalError:
    return LocalError(step="looking at the other host", object=host, cause=cause, remedy=remedy)


# The list's own hash is the folder's name; a file that is not on it is none of ours.
_VERIFY = f"""
echo "DIGEST  {LIST}" | sha256sum -c --status && sha256sum -c --status {LIST} &&
test "$(find . -type f | wc -l)" -eq "$(($(wc -l < {LIST}) + 1))"
"""
_LOOK = f"""
LC_ALL=C; export LC_ALL; umask 077; {CACHE} echo {BEGIN}; echo "cache $cache";
echo "connection $SSH_CONNECTION"; echo "system $(uname -s) $(uname -m)"; echo "libc $(getconf GNU_LIBC_VERSION 2>&1)";
for tool in {" ".join(TOOLS)}; do command -v "$tool" >/dev/null || echo "missing $tool"; done;
if test "$(id -u)" = 0; then echo "root yes"; elif sudo -n true >/dev/null 2>&1; then echo "root sudo"; fi;
if (cd "$cache/DIGEST" && {_VERIFY}) 2>/dev/null; then echo "bundle ready"; fi;
place="$cache"; until test -d "$place"; do place="$(dirname "$place")"; done;
echo "room $(df -Pk "$place" | tail -n 1)"; echo {END}
"""
_TAKE = f"""
LC_ALL=C; export LC_ALL; umask 077; {CACHE} new="$cache/new.$$";
if mkdir -p "$new" && cd "$new" && tar -xzof - && cd {TOP} && {_VERIFY}
&& if (cd "$cache/DIGEST" && {_VERIFY}) 2>/dev/null; then true; else
rm -rf "$cache/DIGEST" && mv "$new/{TOP}" "$cache/DIGEST"; fi; then echo lm-taken; fi;
cd /; rm -rf "$new"; rmdir "$cache" 2>/dev/null; true
"""
_CLEAN = f"""
LC_ALL=C; export LC_ALL; {CACHE} echo {BEGIN}; echo "cache $cache"; root=""; test "$(id -u)" = 0 || root="sudo -n";
busy="$($root find /proc -maxdepth 2 -name exe -lname "$cache/*/{PROGRAM}" 2>/dev/null | head -n 1)";
if test -n "$busy"; then echo "busy $(basename "$(dirname "$busy")")";
elif rm -rf "$cache"; then echo "cleaned yes"; fi; echo {END}
"""
