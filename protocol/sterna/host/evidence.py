"""Images and journals kept for judges: what a migration really moved, for anybody's `cmp`.

An image is the memory of all copied regions, each in a file of its own: ``source.img`` is that of the region
with the lowest id, ``source-7.img`` that of region 7, if there is one more. The source's image is taken when
the guest is released: it has been frozen since the pause, so this costs no downtime. The
destination's is what is in memory when the state has been loaded: a copy is made then, into memory that was
made ready before the pause, and written when the guest runs. So the blackout is longer by the copy alone.

These files hold the guest's memory, with every secret in it. They are made readable by their owner alone, and
whoever asks for them is told. Evidence never endangers a guest: a file that cannot be written is reported in
`failures` and the migration goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import trio

from sterna.errors import ConfigError
from sterna.guest.api import GuestDescription
from sterna.registry import Transfer

SOURCE_IMAGE: Final = "source.img"
DESTINATION_IMAGE: Final = "destination.img"
JOURNAL: Final = "journal.ndjson"
WARNING: Final = "holds the guest's memory, with every secret in it; only this user can read it"

_STEP_BYTES: Final = 8 << 20

Memory: TypeAlias = Callable[[int], memoryview]


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

    def image(self, name: str) -> list[Path]:
        """The files of the image of this name that there are, in the order of their regions."""
        others = {
            int(found[1]): path for path in self.directory.iterdir() if (found := _other(name, path.name))
        }
        first = self.path(name)
        return [*([first] if os.path.lexists(first) else []), *(others[number] for number in sorted(others))]

    def remove_image(self, name: str) -> None:
        """Remove an earlier migration's: what is found afterwards is this one's.

        Raises:
            ConfigError: it cannot be removed.
        """
        for path in self.image(name):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot replace {path}: {error.strerror}") from error

    async def keep_image(self, name: str, description: GuestDescription, memory: Memory) -> None:
        """Write an image. The memory must not change meanwhile."""
        await self._keep(name, {number: memory(number) for number in _copied(description)})

    async def keep_copy(self, name: str, copy: ImageCopy) -> None:
        """Write an image that was copied before; nothing if none was."""
        if copy.taken:
            await self._keep(name, copy.regions())

    async def _keep(self, name: str, regions: Mapping[int, memoryview]) -> None:
        first, *others = regions or {0: memoryview(b"")}
        stem, dot, suffix = name.partition(".")
        names = {first: name} | {number: f"{stem}-{number}{dot}{suffix}" for number in others}
        for number, file in names.items():
            try:
                await trio.to_thread.run_sync(_write, self.path(file), regions.get(number, memoryview(b"")))
            except OSError as error:
                self.failures.append(f"{self.path(file)}: {error.strerror}")


class ImageCopy:
    """A copy of a guest's memory, taken in the blackout.

    Attributes:
        data: the copy; empty before `reserve`.
        taken: whether `data` is an image.
    """

    def __init__(self, description: GuestDescription) -> None:
        sizes = {one.id: one.size_bytes for one in description.regions}
        self._sizes = {number: sizes[number] for number in _copied(description)}
        self.data = np.empty(0, np.uint8)
        self.taken = False

    async def reserve(self) -> None:
        """Have memory for the copy, touched: the kernel's zeroing of it is not for the blackout.

        Raises:
            MemoryError: there is none.
        """
        self.data = np.empty(sum(self._sizes.values()), np.uint8)
        await trio.to_thread.run_sync(self.data.fill, 0)

    async def take(self, memory: Memory) -> None:
        """Copy. The memory must not change meanwhile."""
        views = [np.frombuffer(memory(number), np.uint8) for number in self._sizes]
        if views:
            await trio.to_thread.run_sync(lambda: np.concatenate(views, out=self.data))
        self.taken = True

    def regions(self) -> Mapping[int, memoryview]:
        """The copy of each region, by its id."""
        ends = accumulate(self._sizes.values())
        return {
            number: self.data[end - self._sizes[number] : end].data
            for number, end in zip(self._sizes, ends, strict=True)
        }


def _copied(description: GuestDescription) -> list[int]:
    return sorted(region.id for region in description.regions if region.transfer is Transfer.COPY)


def _new(path: Path) -> int:
    """A new file that only its owner can read, whatever was there before."""
    # Not truncated: an earlier file may be open elsewhere, or have another mode.
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _other(image: str, name: str) -> re.Match[str] | None:
    """Whether this is the name of a file of the image, of a region that is not its first."""
    stem, _, suffix = image.partition(".")
    return re.fullmatch(rf"{re.escape(stem)}-(\d+)\.{re.escape(suffix)}", name)


def _write(path: Path, rest: memoryview) -> None:
    descriptor = _new(path)
    try:
        while rest.nbytes:
            rest = rest[os.write(descriptor, rest[:_STEP_BYTES]) :]
    finally:
        os.close(descriptor)
