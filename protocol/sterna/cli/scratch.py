"""A directory for as long as a command runs, even if it is killed.

Nobody can tidy up behind a SIGKILL, but the next command can: each holds a lock on its directory, and
whatever nobody holds is left over. A lock ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sterna.linux.descriptor import Descriptor

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A new directory for this user alone, which is gone afterwards; left ones of this prefix go first."""
    _clear(prefix)
    directory, lock = _locked(prefix)
    with lock:
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _locked(prefix: str) -> tuple[Path, Descriptor]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix))
        lock = Descriptor(os.open(directory, _DIRECTORY))
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        if directory.exists():
            return directory, lock
        lock.close()  # another command took it for a left one, before it was locked


def _clear(prefix: str) -> None:
    """Remove what commands have left that were killed. Trouble with it is no trouble of this one's."""
    for found in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            with Descriptor(os.open(found, _DIRECTORY)) as lock:
                if os.fstat(lock.fileno()).st_uid != os.geteuid():
                    continue
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
        except OSError:
            continue  # in use, or none of ours
