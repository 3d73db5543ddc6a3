"""The machine's own files keep what sterna.host.durable promises, as far as one can see without a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from descriptors_support import nothing_stays_open
from sterna.host.durable import OsFiles

FILES = OsFiles()


def test_files_and_names(tmp_path: Path) -> None:
    folder = str(tmp_path / "folder")
    assert FILES.names(folder, 9) is None
    FILES.make_directory(folder, 0o700)
    FILES.make_directory(folder, 0o700)
    assert FILES.read(f"{folder}/a", 9) is None
    FILES.create(f"{folder}/a", b"0123456789", 0o600)
    assert (FILES.read(f"{folder}/a", 4), FILES.read(f"{folder}/a", 99)) == (b"0123", b"0123456789")
    FILES.link(f"{folder}/a", f"{folder}/b")
    assert FILES.inode(f"{folder}/a") == FILES.inode(f"{folder}/b")
    FILES.write(f"{folder}/b", 8, b"xyz")
    FILES.sync(f"{folder}/b")
    FILES.sync_directory(folder)
    assert FILES.read(f"{folder}/a", 99) == b"01234567xyz"
    FILES.truncate(f"{folder}/a", 2)
    assert FILES.read(f"{folder}/b", 99) == b"01"
    assert sorted(FILES.names(folder, 9) or ()) == ["a", "b"]
    assert len(FILES.names(folder, 1) or ()) == 1
    FILES.remove(f"{folder}/a")
    assert FILES.names(folder, 9) == ["b"]


def test_nothing_is_replaced(tmp_path: Path) -> None:
    one, other = f"{tmp_path}/one", f"{tmp_path}/other"
    FILES.create(one, b"1", 0o600)
    FILES.create(other, b"2", 0o600)
    with pytest.raises(FileExistsError):
        FILES.create(one, b"3", 0o600)
    with pytest.raises(FileExistsError):
        FILES.link(one, other)
    with pytest.raises(FileExistsError):
        FILES.make_directory(one, 0o700)
    assert (FILES.read(one, 9), FILES.read(other, 9)) == (b"1", b"2")


def test_the_mode_is_the_callers(tmp_path: Path) -> None:
    FILES.make_directory(f"{tmp_path}/d", 0o700)
    FILES.create(f"{tmp_path}/d/f", b"", 0o600)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d/f").stat().st_mode & 0o777 == 0o600


def test_what_is_planted_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    """A FIFO would block its reader, a link would lead elsewhere [LEA-6]."""
    (tmp_path / "target").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "fifo", "folder"):
        with pytest.raises(OSError, match=r"symbolic links|not a plain file"):
            FILES.read(f"{tmp_path}/{name}", 9)


def test_nothing_stays_open(tmp_path: Path) -> None:
    with nothing_stays_open():
        FILES.create(f"{tmp_path}/a", b"x", 0o600)
        FILES.read(f"{tmp_path}/a", 9)
        FILES.write(f"{tmp_path}/a", 0, b"y")
        FILES.sync(f"{tmp_path}/a")
        FILES.sync_directory(str(tmp_path))
