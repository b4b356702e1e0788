"""A store takes paths and bytes from a host that is not trusted."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard

from live_migration.remote import laying, needed, store
from live_migration.remote.needed import Content, Needed, Part

BYTES = b"brought"
CONTENT = Content(digest=hashlib.sha256(BYTES).hexdigest(), amount=len(BYTES))


def described(path: str, **more: object) -> Needed:
    one = Needed(
        path=path, directory=False, why="mapped", identity=path, mode=0o640, uid=0, gid=0, size=len(BYTES), accessed=0,
        modified=7,
    )  # fmt: skip
    return msgspec.structs.replace(one, **more)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[store.Store]:
    """A store whose files are put at their paths."""
    monkeypatch.setattr(store, "FOLDER", tmp_path / "stores")
    taken = store.make(100, place=True)
    yield taken
    store.take_back(taken)
    os.close(taken.lock)
    assert laying.remove(taken.folder)


def bring(taken: store.Store, *wanted: Needed) -> None:
    for one in wanted:
        if store.expect(taken, one, Content() if one.directory else CONTENT):
            store.take(taken, one.path, Part(offset=0, packed=zstandard.compress(BYTES), next=-1))
            assert store.check(taken, one.path)
    store.lay_out(taken)


def test_paths_that_lead_elsewhere(made: store.Store, tmp_path: Path) -> None:
    for path in ("relative", f"{tmp_path}/../x", "/", f"{tmp_path}//x", f"{tmp_path}/x\0", "/" + "a/" * 2500 + "a"):
        (blocker,) = store.compare([described(path)], place=True)[1]
        assert "no plain one" in blocker.cause
        with pytest.raises(ValueError, match="no plain one"):
            store.expect(made, described(path), CONTENT)
    with pytest.raises(ValueError, match="no SHA-256"):
        store.expect(made, described(f"{tmp_path}/x"), Content(digest="../../../etc/passwd"))


def test_a_link_of_another_user_is_not_followed(made: store.Store, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (tmp_path / "link").symlink_to(away)
    os.chown(tmp_path / "link", 1234, 1234, follow_symlinks=False)
    with pytest.raises(OSError, match="another user"):
        bring(made, described(f"{tmp_path}/link/file"))
    assert list(away.iterdir()) == []


def test_nothing_is_overwritten_and_what_was_placed_goes(made: store.Store, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("the host's")
    assert "nothing is overwritten" in store.compare([described(str(there))], place=True)[1][0].cause
    folder = described(f"{tmp_path}/new", directory=True, mode=0o711)
    bring(made, folder, described(f"{tmp_path}/new/one"), described(f"{tmp_path}/new/two"))
    new = tmp_path / "new"
    assert [path.read_bytes() for path in sorted(new.iterdir())] == [BYTES, BYTES]
    assert ((new / "one").stat().st_mtime_ns, (new / "one").stat().st_mode & 0o7777) == (7, 0o640)
    assert (new.stat().st_mtime_ns, new.stat().st_mode & 0o7777) == (7, 0o711)
    assert there.read_text() == "the host's"
    store.take_back(made)
    assert not new.exists()


def test_bytes_that_are_not_those(made: store.Store, tmp_path: Path) -> None:
    one = described(f"{tmp_path}/x")
    assert store.expect(made, one, CONTENT)
    for offset, data in ((len(BYTES), b"x"), (-1, b"x"), (0, b"x" * (needed.PART + 1))):
        with pytest.raises((ValueError, zstandard.ZstdError)):
            store.take(made, one.path, Part(offset=offset, packed=zstandard.compress(data), next=-1))
    store.take(made, one.path, Part(offset=0, packed=zstandard.compress(b"another"), next=-1))
    assert not store.check(made, one.path)


def test_no_room_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has too few bytes, or fills up while the store is made."""
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    for options in ("size=20m", "size=1g,nr_inodes=3"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", tmp_path], check=True)
        try:
            with pytest.raises(OSError, match="No space left on device"):
                store.make(100, place=False)
            assert list(tmp_path.iterdir()) == []
        finally:
            subprocess.run(["umount", "-l", tmp_path], check=True)
