"""Guests that write while they are moved, and QEMU's way: a machine with a program that writes.

The machine runs `data/writer.S`: pages in blocks of 32 that are far apart, one word of each. Its equal is the
guest of `sterna demo --heads`, which writes 24 bytes of each; without that it writes whole pages. The
program's words are numbers of writes, so it shows whether any was lost: QEMU 7.2 under TCG loses some unless
the memory is no multiple of 256 KiB, so it has two pages less.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.errors import ConfigError, GuestError
from sterna.linux.memfd import PAGE_BYTES
from sterna_interop.memories import Memories, path_of
from sterna_interop.moving import watching
from sterna_interop.narrow_link import NarrowLink
from sterna_interop.qemu import Machine, Reply, Settings, free_port

# Of data/writer.S: where its parameters are, and what they mean.
_PARAMETERS: Final = 0x200000
_GO, _FIRST, _MASK, _STRIDE, _RATE, _COUNT = range(6)
_TICKS_A_SECOND: Final = 1193182 / 1193
BLOCK_BYTES: Final = 32 * PAGE_BYTES

_PROGRAM: Final = resources.files("sterna_interop") / "data/writer.bin"

HOT_FIRST: Final = 64 << 20
# Two pages less than was asked for: see above.
LESS_BYTES: Final = 2 * PAGE_BYTES
BELOW_BYTES: Final = 3 << 30  # the machine's memory has a gap there
_BOOT_WITHIN_S: Final = 60.0
_MEASURED_S: Final = 1.0
_POST_COPY_AFTER_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Written:
    """A guest that writes.

    Attributes:
        memory_bytes: of the guest.
        hot_bytes: the part that it writes to, a power of two.
        rate_bytes_s: what it is to write a second.
        downtime_s: how long it may stand still.
        switchover: as `sterna migrate` has it.
        option: which says `memory_bytes`.
    """

    memory_bytes: int
    hot_bytes: int
    rate_bytes_s: int
    downtime_s: float
    switchover: str = "stop-and-copy"
    option: str = "--size"

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes that QEMU's program has no room for."""
        if self.hot_bytes < BLOCK_BYTES or self.hot_bytes & (self.hot_bytes - 1):
            raise ConfigError(f"--hot: {self.hot_bytes} bytes are no power of two from {BLOCK_BYTES}")
        least = HOT_FIRST + self.hot_bytes + LESS_BYTES
        if self.memory_bytes < least:
            raise ConfigError(f"{self.option}: {self.memory_bytes} bytes; {least} or more with this --hot")
        if HOT_FIRST + self.hot_bytes > BELOW_BYTES:
            raise ConfigError(f"--hot: {self.hot_bytes} bytes are too many for QEMU's program")


@dataclass(frozen=True, slots=True)
class WrittenMove:
    """What a migration gave.

    Attributes:
        seconds: from the command until the guest runs at the destination, or until the source knows it.
        blackout_s: how long it stood still, as the side says that moved it.
        rate_bytes_s: what it wrote a second before.
        sent_bytes: what went over the wire; 0 where that is not known.
        cpu_s: CPU seconds of both sides.
        guest_cpu_s: of these the guest's own, where they can be told apart.
        blackout_guest_s: how long it stood still as it saw itself; 0 where it does not tell.
        peak_bytes: the most that each side had beyond the guest's memory and beyond what it had before; zero
            in turns that nobody watches.
    """

    seconds: float
    blackout_s: float
    rate_bytes_s: float
    sent_bytes: int = 0
    cpu_s: float = 0.0
    guest_cpu_s: float = 0.0
    blackout_guest_s: float = 0.0
    peak_bytes: tuple[int, int] = (0, 0)


def memory_of(written: Written, *, compressible: bool = False) -> Memories:
    """As much as QEMU's machine has; see `Memories`. Several ways may have it in turns.

    Raises:
        ConfigError: there is no room for it.
    """
    return Memories(written.memory_bytes - LESS_BYTES, compressible=compressible)


def without_guest_s(moved: WrittenMove) -> float:
    """CPU seconds of both sides that are not the guest's."""
    return moved.cpu_s - moved.guest_cpu_s


class QemuWritten:
    """QEMU, with a program that writes."""

    def __init__(
        self,
        written: Written,
        directory: Path,
        settings: Settings,
        memories: Memories,
        *,
        link_bytes_s: float | None = None,
    ) -> None:
        """Of a guest that writes.

        Args:
            written: the guest.
            directory: for its files.
            settings: how it migrates.
            memories: `memory_of` it.
            link_bytes_s: what the link carries, which nobody tells it; None for loopback.
        """
        self._link_bytes_s = link_bytes_s
        self._written = written
        self._directory = directory
        self._settings = settings
        self._memories = memories

    def move(self, *, watched: bool = False) -> WrittenMove:
        """See `Way.move`.

        Raises:
            GuestError: QEMU fails, or a write was lost.
        """
        memories = self._memories
        memories.clear()
        words = np.frombuffer(memories.sent, np.uint32)
        parameters = words[_PARAMETERS // 4 :][:7]
        parameters[:] = 0
        with ExitStack() as stack:
            kernel = stack.enter_context(resources.as_file(_PROGRAM))
            source, destination = (
                stack.enter_context(
                    Machine(
                        *(self._directory, name, path_of(file), memories.size, self._settings),
                        source=name == "source",
                        kernel=kernel,
                    )
                )
                for name, file in (("source", memories.source), ("destination", memories.destination))
            )
            rate = self._start(parameters)
            narrow = (
                None if self._link_bytes_s is None else stack.enter_context(NarrowLink(self._link_bytes_s))
            )
            peaks = stack.enter_context(watching((source.pid, destination.pid))) if watched else None
            found = self._migrate(source, destination, rate, narrow)
            if peaks is not None:
                found = replace(found, peak_bytes=peaks())
            destination.ask("stop")
            self._check(memories)
        return found

    def _start(self, parameters: npt.NDArray[np.uint32]) -> float:
        """Let it write; what it writes a second, over one."""
        written = self._written
        blocks = written.hot_bytes // BLOCK_BYTES
        stride = int(blocks * 0.618) | 1
        pages_a_tick = written.rate_bytes_s / PAGE_BYTES / _TICKS_A_SECOND
        parameters[_FIRST:_COUNT] = HOT_FIRST, blocks - 1, stride, round(pages_a_tick * 256)
        until = time.monotonic() + _BOOT_WITHIN_S
        while not parameters[_COUNT]:
            if time.monotonic() > until:
                raise GuestError(f"nothing is written in QEMU within {_BOOT_WITHIN_S:g} s")
            parameters[_GO] = 1  # the firmware clears memory before it starts the program
            time.sleep(0.01)
        begin, count = time.monotonic(), int(parameters[_COUNT])
        time.sleep(_MEASURED_S)
        return (int(parameters[_COUNT]) - count) * PAGE_BYTES / (time.monotonic() - begin)

    def _migrate(
        self, source: Machine, destination: Machine, rate: float, narrow: NarrowLink | None
    ) -> WrittenMove:
        port = free_port()
        destination.ask("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
        if narrow is not None:
            narrow.leads_to(port)
        uri = f"tcp:127.0.0.1:{port if narrow is None else narrow.port}"
        cpu_s = source.cpu_s() + destination.cpu_s()
        guest_cpu_s = source.guest_cpu_s() + destination.guest_cpu_s()
        begin = time.time()
        source.ask("migrate", uri=uri)
        if "postcopy-ram" in self._settings.capabilities:
            time.sleep(_POST_COPY_AFTER_S)
            source.ask("migrate-start-postcopy")
        stopped = _at(source.until("STOP"))
        runs = _at(destination.until("RESUME"))
        source.until("MIGRATION", status="completed")
        ram = source.ask("query-migrate")
        sent = ram.get("ram", {}).get("transferred", 0) if isinstance(ram, dict) else 0
        if narrow is not None:
            sent = narrow.passed()
        cpu_s = source.cpu_s() + destination.cpu_s() - cpu_s
        guest_cpu_s = source.guest_cpu_s() + destination.guest_cpu_s() - guest_cpu_s
        return WrittenMove(runs - begin, runs - stopped, rate, int(sent), cpu_s, guest_cpu_s)

    def _check(self, memories: Memories) -> None:
        """No page is older at the destination than it was at the source when that stopped."""
        source, destination = (np.frombuffer(view, np.uint32) for view in (memories.sent, memories.arrived))
        hot = slice(HOT_FIRST // 4, (HOT_FIRST + self._written.hot_bytes) // 4, PAGE_BYTES // 4)
        behind = slice((HOT_FIRST + self._written.hot_bytes) // 4, (memories.size - (1 << 20)) // 4)
        count = int(source[(_PARAMETERS >> 2) + _COUNT])
        written = source[hot] <= count  # what it has not come to yet is random, and most of that larger
        if np.any(destination[hot][written] < source[hot][written]):
            raise GuestError("QEMU has lost writes of its guest")
        if not np.array_equal(source[behind], destination[behind]):
            raise GuestError("not all of QEMU's memory has arrived")


def _at(event: Reply) -> float:
    """When it was, in seconds of the wall clock."""
    stamp = event["timestamp"]
    assert isinstance(stamp, dict)
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
