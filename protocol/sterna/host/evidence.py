"""Images and journals kept for judges: what a migration really moved, for anybody's `cmp`.

An image is the memory of all copied regions, in ascending order of their ids, as one file. The source's is
taken when the guest is released: it has been frozen since the pause, so this costs no downtime. The
destination's is taken after its state was loaded and before its first instruction, which lengthens the
blackout by the time that it takes to write.

These files hold the guest's memory, with every secret in it. They are made readable by their owner alone, and
whoever asks for them is told. Evidence never endangers a guest: a file that cannot be written is reported in
`failures` and the migration goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from sterna.errors import ConfigError
from sterna.guest.api import GuestDescription
from sterna.registry import Transfer

SOURCE_IMAGE: Final = "source.img"
DESTINATION_IMAGE: Final = "destination.img"
JOURNAL: Final = "journal.ndjson"
WARNING: Final = "holds the guest's memory, with every secret in it; only this user can read it"

_STEP_BYTES: Final = 8 << 20


class Evidence:
    """A directory for the evidence of one migration, made with mode 0700 if it does not exist.

    Attributes:
        directory: where.
        failures: what could not be kept, in words.

    Raises:
        ConfigError: there is no such directory, and none can be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failures: list[str] = []
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the directory {directory}: {error.strerror}") from error

    def path(self, name: str) -> Path:
        """Where the piece of evidence of this name is, or will be."""
        return self.directory / name

    def new_file(self, name: str) -> Path:
        """An empty file of mode 0600 in the place of any earlier one.

        Raises:
            ConfigError: it cannot be made.
        """
        path = self.path(name)
        try:
            os.close(_new(path))
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        return path

    async def keep_image(
        self, name: str, description: GuestDescription, memory: Callable[[int], memoryview]
    ) -> None:
        """Write an image. The memory must not change meanwhile."""
        ids = sorted(region.id for region in description.regions if region.transfer is Transfer.COPY)
        try:
            await trio.to_thread.run_sync(_write, self.path(name), [memory(number) for number in ids])
        except OSError as error:
            self.failures.append(f"{self.path(name)}: {error.strerror}")


def _new(path: Path) -> int:
    """A new file that only its owner can read, whatever was there before."""
    # Not truncated: an earlier file may be open elsewhere, or have another mode.
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(path: Path, views: list[memoryview]) -> None:
    descriptor = _new(path)
    try:
        for whole in views:
            rest = whole
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest[:_STEP_BYTES]) :]
    finally:
        os.close(descriptor)
