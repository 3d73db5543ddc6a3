"""`sterna bench wire`: what the protocol costs apart from the bytes it moves, in CPU time of one thread.

- A batch of 1 MiB: its table is written and read by the classes that the endpoints use, up to the event that
  says the pages are there. The page bytes themselves flow by unread, and nobody hashes them.
- A control frame of every type, written and read likewise, with contents as in `sterna_interop.typical`.
- A GiB of memory with kernel tracking: collecting which pages were written, and clearing that.

Each beside what the same would cost if nothing were checked or kept.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.core.words import count_text
from sterna.guest.tracker import UffdTracker
from sterna.limits import HEADER_BYTES, Limits
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import MemoryFile
from sterna.linux.pagemap import PagemapScanner
from sterna.registry import Encoding, FrameType
from sterna.wire import (
    Buffer,
    FrameReader,
    FrameReceived,
    FrameWriter,
    Pages,
    PagesAnnounced,
    PagesReceived,
    PrefaceReceived,
    Record,
    chunk_count,
    crc32,
    encode_body,
    make_runs,
)
from sterna_interop.measured import Report
from sterna_interop.measuring import (
    BARE,
    OURS,
    CpuTime,
    Flag,
    Measure,
    Runs,
    Taken,
    Turn,
    progress,
    take,
)
from sterna_interop.typical import CONTROL_FRAMES, LONGEST_ACK, REGION

BATCH_TARGET_S: Final = 40e-6
CONTROL_TARGET_S: Final = 100e-6
COLLECT_TARGET_S: Final = 20e-3

_BATCH_PAGES: Final = 256
_PAGE_BYTES: Final = 4096
GUEST_BYTES: Final = 1 << 30
_HEADER: Final = struct.Struct("<HHHHQIIII")


def wire(
    *, runs: Runs = 7, guest: Size = GUEST_BYTES, verbose: Flag = False, check: Flag = False,
    json: Json = False,
) -> Exit:  # fmt: skip
    """Encoding plus decoding, and collecting what a guest has written, in CPU seconds.

    Args:
        runs: turns of each way; medians are shown.
        guest: memory under tracking; the target is for 1GiB.
        verbose: show every type of control frame, not only the slowest.
        check: fail if a target is missed.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        measures = [*batches(), *control_frames()]
        try:
            measures += stack.enter_context(collecting(guest))
        except (CapabilityMissing, MemoryError) as missing:
            skipped["collect"] = str(missing)
        with progress(output) as say:
            taken = take(measures, runs, say)
    report = Report(bench="wire", runs=runs, taken=[*_slowest(taken), *taken], skipped=skipped)
    report.show(output, everything=verbose)
    return Exit.FAILED if check and report.missed else Exit.OK


class Link:
    """A writer, and the reader at the other end, that know each other's limits and the guest."""

    def __init__(self) -> None:
        regions = {REGION.id: REGION}
        self._writer, self._reader = FrameWriter(), FrameReader()
        self._writer.set_limits(Limits())
        self._writer.set_regions(regions)
        self._reader.set_limits(Limits())
        self._reader.set_regions(regions)
        self._reader.receive_data(self._writer.preface())
        self._expect(PrefaceReceived)

    def pass_on(self, record: Record) -> None:
        """A control frame, from record to record."""
        (frame,) = self._writer.frame(record)
        self._reader.receive_data(frame)
        self._expect(FrameReceived)

    def pass_batch(self, record: Pages, bulk: list[Buffer], bytes_of_bulk: Buffer) -> None:
        """A batch; `bytes_of_bulk` stands for what the socket would give."""
        frame, *_ = self._writer.frame(record, bulk)
        self._reader.receive_data(frame)
        self._expect(PagesAnnounced)
        self._reader.discard_bulk()
        self._reader.receive_data(bytes_of_bulk)
        self._expect(PagesReceived)

    def _expect(self, kind: type) -> None:
        event = self._reader.next_event()
        assert isinstance(event, kind), f"{event} instead of {kind.__name__}"


# ---- batches ----


def batches() -> Iterator[Measure]:
    """1 MiB in one run, in some, and page by page."""
    for runs in (1, 16, 256):
        link, size = Link(), _BATCH_PAGES // runs
        rows = [(2 * size * number, size, Encoding.RAW) for number in range(runs)]
        table = make_runs(rows, REGION.granule_log2)
        hashes = np.zeros(chunk_count(table, REGION.granule_log2), dtype=np.uint64)
        record = Pages(1, 1, REGION.id, table, hashes)
        memory = memoryview(bytearray(_BATCH_PAGES * _PAGE_BYTES))
        length = size * _PAGE_BYTES
        bulk: list[Buffer] = [memory[at : at + length] for at in range(0, len(memory), length)]
        yield Measure(
            name=f"batch_{runs}_runs",
            text=f"batch of 1 MiB in {count_text(runs, 'run')}",
            ways={OURS: CpuTime(_call(link.pass_batch, record, bulk, memory)), BARE: CpuTime(_bare(record))},
            yardstick="struct and crc32 alone",
            target=BATCH_TARGET_S,
        )


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _bare(record: Record) -> Callable[[], object]:
    """A header packed and unpacked around a body that is already there, with both checksums at both ends."""
    body = encode_body(record)
    kind = int(record.type)

    def work() -> None:
        head = _HEADER.pack(kind, 0, 0, 0, 1, len(body), 0, crc32(body), 0)
        frame = head[:-4] + struct.pack("<I", crc32(head[:-4])) + body
        *_, body_crc, header_crc = _HEADER.unpack_from(frame)
        view = memoryview(frame)
        assert (crc32(view[: HEADER_BYTES - 4]), crc32(view[HEADER_BYTES:])) == (header_crc, body_crc)

    return work


# ---- control frames ----


def control_frames() -> Iterator[Measure]:
    """One of every type, and the longest of those that come in every round."""
    for record in CONTROL_FRAMES:
        name = FrameType(record.type).name
        yield _control(f"frame_{name.lower()}", name, record, target=CONTROL_TARGET_S, detail=True)
    ranges = len(LONGEST_ACK.rejected)
    yield _control(f"frame_round_ack_{ranges}", f"ROUND_ACK with {ranges} ranges", LONGEST_ACK)


def _control(
    name: str, text: str, record: Record, *, target: float | None = None, detail: bool = False
) -> Measure:
    return Measure(
        name=name,
        text=text,
        ways={OURS: CpuTime(_call(Link().pass_on, record)), BARE: CpuTime(_bare(record))},
        yardstick="struct and crc32 alone",
        target=target,
        detail=detail,
    )


def _slowest(taken: list[Taken]) -> Iterator[Taken]:
    """The slowest of the control frames, under a name that stays."""
    frames = [each for each in taken if each.measure.detail]
    slowest = max(frames, key=Taken.median)
    measure = slowest.measure
    yield Taken(
        Measure(
            name="control_frame",
            text=f"control frame, the slowest: {measure.text}",
            ways=measure.ways,
            yardstick=measure.yardstick,
            target=measure.target,
        ),
        slowest.values,
    )


# ---- collecting ----


@contextmanager
def collecting(guest_bytes: int) -> Iterator[list[Measure]]:
    """A guest's memory under kernel tracking, written to in several patterns before each collect.

    Raises:
        CapabilityMissing: the kernel has no tracking for us.
        MemoryError: there is no room for such a guest.
    """
    with ExitStack() as stack:
        file = MemoryFile("sterna-bench", guest_bytes)
        stack.callback(file.close)
        memory = file.map()
        stack.callback(memory.close)
        memory.populate(0, guest_bytes)
        tracker = UffdTracker(memory)
        tracker.start()
        stack.callback(tracker.stop)
        scanner = PagemapScanner()
        stack.callback(scanner.close)
        pages = guest_bytes // _PAGE_BYTES
        some = np.random.default_rng(1).choice(pages, pages // 64, replace=False)
        patterns: Mapping[str, tuple[str, npt.NDArray[np.int64]]] = {
            "none": ("nothing written", some[:0]),
            "some": ("one page in 64, at random", some),
            "all": ("every page written", np.arange(pages)),
        }

        def turn(dirty: npt.NDArray[np.int64], work: Callable[[], object]) -> Turn:
            def measure() -> float:
                memory.array[dirty * _PAGE_BYTES] += 1
                begin = time.thread_time()
                work()
                return time.thread_time() - begin

            return measure

        yield [
            Measure(
                name=f"collect_{name}",
                text=f"collect and clear {guest_bytes >> 20} MiB, {text}",
                ways={
                    OURS: turn(dirty, tracker.collect),
                    BARE: turn(dirty, lambda: scanner.protect(memory.address, guest_bytes)),
                },
                yardstick="PAGEMAP_SCAN that only clears",
                target=COLLECT_TARGET_S if guest_bytes == GUEST_BYTES else None,
            )
            for name, (text, dirty) in patterns.items()
        ]
