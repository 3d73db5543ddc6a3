"""Memory that goes from one process to another: what the benchmarks of transfers share.

Every way of moving is a turn of its own over the same two memory files: two processes map them, populate the
mapping (memory that the machine has not backed yet costs ten times the copy), say that they are ready, and
begin when the clock runs. It is never one hot buffer, which would stay in the caches. The destination's
memory reads as zeros before each turn, and what has arrived is compared after it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TypeAlias

from sterna.cli.exits import gravest
from sterna.errors import GuestError
from sterna_interop.memories import Memories

TURN_WITHIN_S: Final = 300.0
WATCH_EVERY_S: Final = 0.005

# Each side has its mapping of the whole memory. The receiver tells the port on which it listens, and ends
# when all has arrived; the sender is given that port, and tells how many seconds it has taken, first of all.
Send: TypeAlias = Callable[[memoryview, int], float | tuple[float, ...]]
Ready: TypeAlias = Callable[[int], None]
Receive: TypeAlias = Callable[[memoryview, Ready], None]

_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; the mmap module has no name for it
_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

# Before the children: nothing here has threads, and what they import is there already.
_forking = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Moved:
    """What one turn has given. Of pairs the source's is the first.

    Attributes:
        seconds: from the first word to the last answer.
        cpu_s: CPU seconds of each side meanwhile.
        more: what else the sender has to tell.
        peak_bytes: the most that each side had beyond the guest's memory and beyond what it had before; zero
            in turns that nobody watches.
    """

    seconds: float
    cpu_s: tuple[float, float]
    peak_bytes: tuple[int, int] = (0, 0)
    more: tuple[float, ...] = ()


class Processes:
    """A way with a process of ours at each side."""

    def __init__(self, send: Send, receive: Receive, memories: Memories) -> None:
        self._send = send
        self._receive = receive
        self._memories = memories

    def move(self, *, watched: bool = False) -> Moved:
        """See `Way.move`.

        Raises:
            GuestError: a side has failed, or not all has arrived.
        """
        memories = self._memories
        memories.clear()
        with ExitStack() as stack:
            destination = stack.enter_context(_receiver(self._receive, memories, apart=not watched))
            source = stack.enter_context(_sender(self._send, memories, apart=not watched))
            (port,) = destination.hear()
            source.hear()
            peaks = stack.enter_context(watching((source.pid, destination.pid))) if watched else None
            source.tell(int(port))
            source_cpu_s, seconds, *more = source.hear()
            (destination_cpu_s,) = destination.hear()
            peak_bytes = (0, 0) if peaks is None else peaks()
        memories.check()
        return Moved(seconds, (source_cpu_s, destination_cpu_s), peak_bytes, tuple(more))


# ---- the processes ----

Figures: TypeAlias = tuple[float, ...]


class Side:
    """A process, seen from here."""

    def __init__(self, name: str, pid: int, pipe: Connection) -> None:
        self.pid = pid
        self._name = name
        self._pipe = pipe

    def tell(self, number: int) -> None:
        """What it waits for."""
        self._pipe.send(number)

    def hear(self) -> Figures:
        """What it says next.

        Raises:
            GuestError: that it has failed, or nothing.
        """
        if not self._pipe.poll(TURN_WITHIN_S):
            raise GuestError(f"the {self._name} says nothing for {TURN_WITHIN_S:g} s")
        try:
            said: Figures | str = self._pipe.recv()
        except EOFError:
            said = "it has ended without a word"
        if isinstance(said, str):
            raise GuestError(f"the {self._name} failed: {said}")
        return said


@contextmanager
def forked(name: str, work: Callable[[Connection], None], *, apart: bool = False) -> Iterator[Side]:
    """A process that does this; it has ended afterwards, whatever became of it.

    `apart`: it shares no memory with this one, which has to be copied when it is written to. What it takes
    cannot be told then, since it has all that this one has once had.
    """
    ours, theirs = _forking.Pipe()
    process = _forking.Process(target=_run, args=(theirs, work, apart), daemon=True)
    process.start()
    theirs.close()  # or nobody would see its end
    try:
        assert process.pid is not None
        yield Side(name, process.pid, ours)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _run(pipe: Connection, work: Callable[[Connection], None], apart: bool) -> None:
    # A collection would write into every object that the parent has made, and each page of them be copied
    # then: 35 ms of CPU time in each turn, for what no endpoint has that was not forked.
    gc.freeze()
    if apart:
        _own_memory()
    try:
        work(pipe)
    except BaseException as error:  # noqa: BLE001  # nobody is above us; the parent is told
        first = gravest(error)
        pipe.send(f"{type(first).__name__}: {first}")


def _own_memory() -> None:
    """Copy now what this process shares with its parent until it writes to it.

    A session writes to some 2300 such pages at either side, in its first milliseconds. The faults take 10 ms
    there, of 130 for 512 MiB, and no endpoint has them that was not forked either.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_ = line.split()
        if rights == "rw-p" and not line.endswith("[stack]"):
            begin, end = (int(address, 16) for address in place.split("-"))
            _libc.madvise(begin, end - begin, _MADV_POPULATE_WRITE)  # a kernel that cannot leaves it as it is


def _sender(send: Send, memories: Memories, *, apart: bool) -> AbstractContextManager[Side]:
    def work(pipe: Connection) -> None:
        view = memories.map_source()
        pipe.send(())
        port = pipe.recv()
        begin = time.process_time()
        told = send(view, port)
        told = told if isinstance(told, tuple) else (told,)
        pipe.send((time.process_time() - begin, *told))

    return forked("sender", work, apart=apart)


def _receiver(receive: Receive, memories: Memories, *, apart: bool) -> AbstractContextManager[Side]:
    def work(pipe: Connection) -> None:
        begin = 0.0

        def ready(port: int) -> None:
            nonlocal begin
            pipe.send((port,))
            begin = time.process_time()

        receive(memories.map_destination(), ready)
        pipe.send((time.process_time() - begin,))

    return forked("receiver", work, apart=apart)


# ---- their memory ----


def beyond_guest_bytes(pid: int) -> int:
    """What a process has in memory, its share of what it shares, without shared memory: that is the guest's.

    0 for one that is gone.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = dict(line.split(":") for line in text.splitlines()[1:])
    return sum(int(sizes[name].split()[0]) << 10 for name in ("Pss_Anon", "Pss_File"))


@contextmanager
def watching(pids: Sequence[int]) -> Iterator[Callable[[], tuple[int, int]]]:
    """What two processes take beyond what they have now; the function gives the peaks, once."""

    def work(pipe: Connection) -> None:
        idle = [beyond_guest_bytes(pid) for pid in pids]
        peaks = list(idle)
        pipe.send(())
        while not pipe.poll(WATCH_EVERY_S):
            peaks = [max(peak, beyond_guest_bytes(pid)) for peak, pid in zip(peaks, pids, strict=True)]
        pipe.send(tuple(peak - before for peak, before in zip(peaks, idle, strict=True)))

    with forked("watcher", work) as side:
        side.hear()

        def peaks() -> tuple[int, int]:
            side.tell(0)
            source, destination = side.hear()
            return int(source), int(destination)

        yield peaks
