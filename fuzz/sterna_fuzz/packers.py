"""Who packs pages beside a source's machine: as an endpoint does, and now and then as nobody should.

A job is taken at one moment, done at another and brought at a third, so the guest writes between these. What
is packed wrong stands for a defect of a source, or for bytes that were damaged before they were hashed; how a
destination has to take it is known beforehand (`Harm`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import Final

import numpy as np

from sterna.core.batches import Batches
from sterna.core.events import Event, RoundFinished, RoundStarted
from sterna.core.negotiate import Selection
from sterna.core.sending import Job
from sterna.memory.packing import Packer
from sterna.memory.pages import EncodedBatch, RegionPages
from sterna.memory.recent import RecentPages
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding, Feature
from sterna.testing.zstd_frames import frame
from sterna_fuzz.packed import WAYS

ROOM_BYTES: Final = 1 << 16  # for versions that were sent: not for those of every guest
WINDOW_LOG2: Final = 18


class Harm(Enum):
    """What a run that is packed in some way does."""

    NONE = "none"
    REJECTED = "its pages may be rejected, and are sent again"
    ENDS = "it is none, and ends the session"


_OTHER: Final = {"other": (Encoding.ZSTD, lambda content: frame(bytes(each ^ 0xFF for each in content)))}
WAYS_OF_RUNS: Final[Mapping[str, tuple[Encoding, Callable[[bytes], bytes]]]] = MappingProxyType(
    {
        **{name: way for name, way in WAYS.items() if name not in {"empty", "large", "other content"}},
        **_OTHER,
    }
)
_HARMLESS: Final = frozenset({"honest", "checksum"})
_REJECTED: Final = frozenset({"other", "change of zeros", "change of nothing", "change of itself"})


def harm_of(name: str) -> Harm:
    """What a way of packing does."""
    if name in _HARMLESS:
        return Harm.NONE
    return Harm.REJECTED if name in _REJECTED else Harm.ENDS


class Packs:
    """The packer of one source.

    Attributes:
        way: in which a run of the next batch is packed, "" for the right one.
        harmed: what batches that were packed otherwise do, by the bytes of their run.

    Args:
        source: the machine.
        pages: of its guest.
    """

    def __init__(self, source: Batches, pages: RegionPages) -> None:
        source.packs = True
        self.way = ""
        self.harmed: Final[dict[bytes, Harm]] = {}
        self._source: Final = source
        self._pages: Final = pages
        self._recent: Final = RecentPages(pages.table, ROOM_BYTES)
        self._compressor: Final = Compressor(1)
        self._packer: Packer | None = None
        self._job: Job | None = None
        self._batch: EncodedBatch | None = None

    def step(self) -> bool:
        """Take a job, do it, or bring what it came to. Whether there was anything to do."""
        if self._job is None:
            self._job = self._source.next_job()
        elif self._batch is None:
            self._batch = self._packed(self._job)
        else:
            job, batch, self._job, self._batch = self._job, self._batch, None, None
            self._source.job_done(job, batch)
            return True
        return self._job is not None

    def hears(self, event: Event) -> None:
        """What an endpoint goes by: what was rejected is not what a change may be a change of."""
        if isinstance(event, RoundStarted):
            self._recent.next_round()
        elif isinstance(event, RoundFinished) and event.stats.rejected_pages:
            self._recent.clear()

    def _packed(self, job: Job) -> EncodedBatch:
        selection, runs = self._source.selection, (job.region, job.starts, job.counts)
        assert selection is not None
        if self._packer is None:
            recent = self._recent if selection.has(Feature.ENCODING_DELTA) else None
            expansion, hashed = selection.limits.expansion, selection.hashed
            self._packer = Packer(self._pages, expansion, recent, hashed=hashed)
        if self.way:
            plain = self._pages.encode(*runs, zeros=job.zeros, hashed=selection.hashed)
            found = self._spoilt(plain, self.way, selection)
            if found is not None:
                self.way = ""
                return found
        return self._packer.pack(*runs, self._compressor, zeros=job.zeros, remember=not job.round.last)

    def _spoilt(self, plain: EncodedBatch, name: str, selection: Selection) -> EncodedBatch | None:
        """This batch with its last run of bytes packed in a way, None if none can be."""
        raw: Sequence[int] = np.flatnonzero(plain.runs["encoding"] == Encoding.RAW).tolist()
        if not raw:
            return None
        copies = [bytes(buffer) for buffer in plain.buffers]
        content = copies[-1]
        if sum(plain.runs["size_bytes"][raw].tolist()) != sum(map(len, copies)) or len(raw) != len(copies):
            return None
        encoding, make = WAYS_OF_RUNS[name]
        made = make(content)
        most = len(made) * selection.limits.expansion
        if encoding not in selection.encodings or not len(made) < len(content) <= most:
            return None  # no source of ours says that, and fuzz frames does
        runs = plain.runs.copy()
        runs["encoding"][raw[-1]], runs["size_bytes"][raw[-1]] = encoding, len(made)
        self.harmed[made] = harm_of(name)
        buffers = tuple([memoryview(each) for each in (*copies[:-1], made)])
        bulk_bytes = sum(buffer.nbytes for buffer in buffers)
        return replace(
            plain, runs=runs, buffers=buffers, bulk_bytes=bulk_bytes, unpacked_bytes=plain.bulk_bytes
        )
