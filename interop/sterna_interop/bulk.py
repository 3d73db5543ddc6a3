"""What the benchmarks of random memory share: `sterna bench memory`, and `tls`.

In random memory every byte has to pass. Sterna's session has page hashes and the digest of the whole memory
on, as always.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sterna.cli.output import Output
from sterna.core.words import size_text
from sterna_interop.benchmarks_file import write_section
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, BARE_HASH, OURS, Bound, progress
from sterna_interop.moving import Memories, Way
from sterna_interop.moving_bare import bare
from sterna_interop.moving_qemu import QemuMoves
from sterna_interop.moving_sterna import PLAIN, sterna
from sterna_interop.moving_tls import Certificates
from sterna_interop.qemu import Settings, program
from sterna_interop.transfers import Transfers, best_of_qemu

SIZE_BYTES: Final = 1 << 30
QEMU_CHANNELS: Final[Mapping[str, int]] = {"one channel": 1, "multifd 2": 2}
_TOUCHED: Final = "both sides' is mapped and touched before the clock runs"


def random_memory(
    bench: str,
    *,
    size: int,
    runs: int,
    against: str | None,
    bounds: Mapping[str, Bound],
    tls: bool,
    output: Output,
    write: str | None,
) -> None:
    """Measure, and show what was found.

    Raises:
        ConfigError: QEMU is to be measured and is not there, or the file cannot be written.
    """
    if against is not None:
        program()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
        certificates = Certificates(directory) if tls else None
        memories = Memories(size)
        transfers = Transfers(
            memories=memories,
            ways=_ways(memories, certificates) | _qemu(memories, certificates, directory, against),
            bounds=bounds,
        )
        taken = transfers.take(runs, stack.enter_context(progress(output)))
    conditions = {
        "memory": f"{size_text(size)}, random; {_TOUCHED}",
        "connection": f"{'mutual TLS 1.3' if tls else 'plain TCP'} over loopback, handshakes included",
        "Sterna": "a whole session, with page hashes and digest; its guest has memory only, and no records",
    }
    if against is not None:
        taken, conditions["QEMU"] = best_of_qemu(taken, list(QEMU_CHANNELS))
    report = Report(bench=bench, runs=runs, taken=taken, principal=transfers.principal, conditions=conditions)
    report.show(output)
    if write is not None:
        write_section(report, Path(write), output)


def _ways(memories: Memories, certificates: Certificates | None) -> dict[str, Way]:
    security = PLAIN if certificates is None else certificates.security()
    contexts = None if certificates is None else certificates.contexts()
    return {
        OURS: sterna(memories, security),
        BARE: bare(memories, contexts=contexts),
        BARE_HASH: bare(memories, contexts=contexts, hashed=True),
    }


def _qemu(
    memories: Memories, certificates: Certificates | None, directory: Path, against: str | None
) -> dict[str, Way]:
    if against is None:
        return {}
    tls = None if certificates is None else certificates.for_qemu()
    return {
        name: QemuMoves(memories, directory, Settings(channels=channels, tls=tls))
        for name, channels in QEMU_CHANNELS.items()
    }
