"""`sterna bench blackout`: how long a guest stands still, beside one that writes nothing.

A guest of the process kind is moved over mutual TLS on loopback, with durable records, while it writes; and
in turns with it, in the same way, one that does not write. What both stand still for is what the endpoints
have to say to each other, to their holders and to the disk; the rest is the price of the writes.

Each turn starts processes of its own, so there is nothing to warm up; of a large guest a turn takes long, for
its memory is filled, and audited in the end.

With ``--against qemu`` everything is plain, and instead of the idle one QEMU's machine is moved in turns with
ours, with a program that writes as much: by post-copy where ours goes by bitmap, its shortest switchover.
That is another table. QEMU's turns do not lie around their median, but in two groups, so each is told.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Duration, Json, Rate, Size, format_duration
from sterna.core.words import rate_text, size_text
from sterna.errors import GuestError
from sterna_interop.measured import Report
from sterna_interop.measuring import OURS, QEMU, Measure, Runs, Turn, at_most, progress, take
from sterna_interop.moving_written import Last, QemuWritten, Written
from sterna_interop.qemu import Settings, version
from sterna_interop.transfers import Against, Write, need, write_to

MEMORY_BYTES: Final = 256 << 20
RATE_BYTES_S: Final = 1 << 30
DOWNTIME_S: Final = 0.3
IDLE: Final = "idle"
BESIDE_QEMU: Final = "blackout beside QEMU"
PLAIN: Final = ("--insecure", "--room")


def blackout(
    *,
    switchover: Annotated[Literal["bitmap", "stop-and-copy"], Parameter(show_choices=True)] = "bitmap",
    memory: Size = MEMORY_BYTES,
    hot: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    downtime: Duration = DOWNTIME_S,
    runs: Runs = 5,
    against: Against = None,
    write: Write = None,
    json: Json = False,
) -> None:
    """How long a writing guest stands still, beside an idle one, or beside QEMU's.

    Args:
        switchover: how it is moved in the end.
        memory: of the guest.
        hot: the part of it that the guest writes to.
        dirty_rate: what the guest writes a second.
        downtime: how long it may stand still, for a switchover by stop-and-copy.
        runs: turns of each way; medians are shown.
        against: measure QEMU instead of an idle guest; memory is 64MiB more than --hot, a power of two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    output = Output(json=json)
    conditions = {"guest": f"{size_text(memory)}, of which it writes {size_text(hot)}, {switchover}"}
    with ExitStack() as stack:
        say = stack.enter_context(progress(output))
        command = ("--memory", f"{memory}B", "--hot", f"{hot}B", "--switchover", switchover)
        command += ("--downtime", format_duration(downtime), *(PLAIN if against else ()))
        writing, idle = (Moved(command, rate) for rate in (dirty_rate, 0.0))
        blackouts: dict[str, Turn] = {OURS: writing}
        totals: dict[str, Turn] = {OURS: lambda: writing.total_s}
        if against is None:
            blackouts[IDLE] = idle
            totals[IDLE] = lambda: idle.total_s
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
            say("filling memory for QEMU's guest")
            qemu = Last(_qemu(Written(memory, hot, dirty_rate, downtime, switchover), directory))
            blackouts[QEMU] = qemu.turn(lambda moved: moved.blackout_s)
            totals[QEMU] = qemu.told(lambda moved: moved.seconds)
            conditions |= {
                "connection": "plain TCP over loopback; the destination's memory is there beforehand",
                "QEMU": f"{version()}, TCG, {'post-copy' if switchover == 'bitmap' else 'pre-copy'}; "
                "blackout from its event STOP to its event RESUME",
            }
        measures = [
            Measure(
                name="blackout",
                text="blackout",
                ways=blackouts,
                bounds={IDLE: at_most(2.0, 1.5), QEMU: at_most(1.0, 0.5)},
            ),
            Measure(name="guest", text="between two writes", ways={OURS: lambda: writing.guest_s}),
            Measure(name="total", text="until it runs there", ways=totals, detail=True),
        ]
        taken = take(measures, runs, say, warm=True)
    conditions["written"] = (
        f"{rate_text(writing.rate_bytes_s)} in the last turn, {rate_text(dirty_rate)} asked for"
    )
    if against is not None:
        turns = " ".join(f"{seconds * 1e3:.3g}" for seconds in taken[0].values[QEMU])
        conditions["QEMU's blackouts"] = f"{turns} ms"
    report = Report(
        bench="blackout",
        section=BESIDE_QEMU if against else "",
        runs=runs,
        taken=taken,
        principal="blackout",
        conditions=conditions,
    )
    write_to(report, write, output)


def _qemu(written: Written, directory: Path) -> QemuWritten:
    capabilities = ("postcopy-ram",) if written.switchover == "bitmap" else ()
    return QemuWritten(written, directory, Settings(capabilities=capabilities))


class Moved:
    """A turn: a whole migration of real processes; seconds of blackout.

    Attributes:
        guest_s: the blackout as the guest saw it, in the last turn; 0 for one that does not write.
        total_s: what the migration took, until the source knew that the guest runs there.
        rate_bytes_s: what the guest wrote a second.
    """

    def __init__(self, options: tuple[str, ...], dirty_rate: float) -> None:
        self.guest_s = self.total_s = self.rate_bytes_s = 0.0
        self._command = (
            *(sys.executable, "-P", "-m", "sterna", "demo", "--guest", "process", "--json", *options),
            *("--dirty-rate", f"{int(dirty_rate)}B/s"),
        )

    def __call__(self) -> float:
        """Seconds of one migration's blackout."""
        done = subprocess.run(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        found = json_module.loads(done.stdout or b"{}")
        if done.returncode or not found.get("seconds_blackout"):
            raise GuestError(f"the demo has ended with exit code {done.returncode}: {found.get('failures')}")
        self.guest_s = float(found["seconds_blackout_guest"] or 0.0)
        self.total_s = float(found["seconds_until_run"])
        self.rate_bytes_s = float(found["write_rate_achieved"])
        return float(found["seconds_blackout"])
