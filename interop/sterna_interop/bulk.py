"""What the benchmarks of memory that stands still share: `sterna bench memory`, `tls` and `sparse`.

Sterna's session has page hashes and the digest of the whole memory on, as always. One without hashes may be
measured as well, in the same turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from sterna import Options
from sterna.cli.output import Output
from sterna.core.rounds import batch_bounds
from sterna.core.words import size_text
from sterna.limits import BATCH_BYTES, Limits
from sterna.memory.regions import RegionTable
from sterna.net.options import batch_bytes
from sterna.wire.records import Region
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, BARE_HASH, BARE_HASH_USUAL, BARE_USUAL, OURS, Bound, Way, progress
from sterna_interop.memories import Memories
from sterna_interop.moving import Moved
from sterna_interop.moving_bare import bare, congestion_control
from sterna_interop.moving_qemu import QemuMoves
from sterna_interop.moving_sterna import PLAIN, UNVERIFIED, VERIFIED, sterna
from sterna_interop.moving_tls import Certificates
from sterna_interop.qemu import Settings
from sterna_interop.transfers import Transfers, best_of_qemu, write_to

SIZE_BYTES: Final = 1 << 30
QEMU_CHANNELS: Final[Mapping[str, int]] = {"one channel": 1, "multifd 2": 2}

TCP: Final = "plain TCP"
TLS: Final = "mutual TLS 1.3"
SESSION: Final = "a whole session, with page hashes and digest; its guest has memory only, and no records"

_FAST_BYTES_S: Final = 3e9  # of a loopback

Conditions: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Bulk:
    """A benchmark of memory that stands still.

    Attributes:
        bench: its name.
        memories: what is moved.
        bounds: of the principal ratio, by the name of the other way.
        conditions: what has to be known of the memory.
        tls: whether it goes over mutual TLS.
        rate: whether a rate is what counts; if not, the time.
        hashed: whether the bare loop that hashes is of interest.
        unverified: bounds of a session without hashes, as `bounds`; None if none is of interest.
        streams: Sterna's data connections; the bare loops have as many connections, and one without any.
    """

    bench: str
    memories: Memories
    bounds: Mapping[str, Bound]
    conditions: Conditions
    tls: bool = False
    rate: bool = True
    hashed: bool = True
    unverified: Mapping[str, Bound] | None = None
    streams: int = 0

    def run(self, runs: int, against: str | None, output: Output, write: str | None) -> None:
        """Measure, and show what was found.

        Raises:
            ConfigError: the file cannot be written, or there is no room for QEMU's memory.
        """
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
            certificates = Certificates(directory) if self.tls else None
            ways = self._ways(certificates)
            if against is not None:
                ways |= self._qemu(certificates, directory)
            transfers = self._transfers(ways)
            taken = transfers.take(runs, stack.enter_context(progress(output)))
        conditions = self.conditions | {
            "connection": f"{TLS if self.tls else TCP} over loopback, handshakes included",
            "congestion control": congestion_control(),
            "Sterna": SESSION,
        }
        if self.hashed:
            conditions["batches"] = self._batches_text()
        if self.streams:
            conditions["connections"] = (
                f"{self.streams} data connections of Sterna's, and as many of the bare loops', each with its "
                "part of the memory"
            )
        if self.unverified is not None:
            conditions["unverified"] = "the same without page hashes, as --unverified at both ends makes it"
        if against is not None:
            taken, conditions["QEMU"] = best_of_qemu(taken, list(QEMU_CHANNELS))
        report = Report(
            bench=self.bench, runs=runs, taken=taken, principal=transfers.principal, conditions=conditions
        )
        write_to(report, write, output)

    def _transfers(self, ways: Mapping[str, Way[Moved]]) -> Transfers:
        plain = Transfers(memories=self.memories, ways=ways, bounds=self.bounds, rate=self.rate)
        if self.unverified is None:
            return plain
        unhashed = sterna(self.memories, PLAIN, self._options(UNVERIFIED))
        return replace(plain, unverified=unhashed, unverified_bounds=self.unverified)

    def _ways(self, certificates: Certificates | None) -> dict[str, Way[Moved]]:
        security = PLAIN if certificates is None else certificates.security()
        contexts = None if certificates is None else certificates.contexts()
        loop = partial(bare, self.memories, contexts=contexts, connections=self.streams or 1)
        same = self.batch_bytes
        ways: dict[str, Way[Moved]] = {
            OURS: sterna(self.memories, security, self._options(VERIFIED)),
            BARE: loop(batch_bytes=same),
        }
        if self.hashed:
            ways[BARE_HASH] = loop(batch_bytes=same, hashed=True)
            if same > BATCH_BYTES:
                ways |= {BARE_USUAL: loop(), BARE_HASH_USUAL: loop(hashed=True)}
        return ways

    @property
    def batch_bytes(self) -> int:
        """What Sterna's batches grow to on a fast link, and the bare loops' are."""
        most = batch_bytes(VERIFIED, plain=not self.tls)
        regions = RegionTable([Region(0, 0, self.memories.size)])
        return batch_bounds(regions, Limits(), most, _FAST_BYTES_S, self.streams or 1)[0]

    def _batches_text(self) -> str:
        text = f"up to {size_text(self.batch_bytes)}, Sterna's and the bare loops'"
        if self.batch_bytes <= BATCH_BYTES:
            return text
        return f"{text} by which bounds are; such loops are a little faster with {size_text(BATCH_BYTES)}"

    def _options(self, options: Options) -> Options:
        """With its data connections. Nobody takes up a session that was lost: that is not offered."""
        return replace(options, streams=self.streams, resume_s=0) if self.streams else options

    def _qemu(self, certificates: Certificates | None, directory: Path) -> dict[str, Way[Moved]]:
        tls = None if certificates is None else certificates.for_qemu()
        return {
            name: QemuMoves(self.memories, directory, Settings(channels=channels, tls=tls))
            for name, channels in QEMU_CHANNELS.items()
        }


def random_memory(size_bytes: int) -> tuple[Memories, Conditions]:
    """All of it random: every byte has to pass."""
    text = f"{size_text(size_bytes)}, random; both sides' is mapped and touched before the clock runs"
    return Memories(size_bytes), {"memory": text}
