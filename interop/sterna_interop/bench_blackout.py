"""`sterna bench blackout`: how long a guest stands still, beside one that writes nothing.

A guest of the process kind is moved over mutual TLS on loopback, with durable records, while it writes; and
in turns with it, in the same way, one that does not write. What both stand still for is what the endpoints
have to say to each other, to their holders and to the disk; the rest is the price of the writes.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Json, Rate, Size
from sterna.core.words import rate_text, size_text
from sterna.errors import GuestError
from sterna_interop.measured import Report
from sterna_interop.measuring import OURS, Measure, Runs, at_most, progress, take

MEMORY_BYTES: Final = 256 << 20
RATE_BYTES_S: Final = 1 << 30
IDLE: Final = "idle"


def blackout(
    *,
    switchover: Annotated[Literal["bitmap", "stop-and-copy"], Parameter(show_choices=True)] = "bitmap",
    memory: Size = MEMORY_BYTES,
    hot: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    downtime: str = "300ms",
    runs: Runs = 5,
    json: Json = False,
) -> None:
    """How long a writing guest stands still, beside an idle one.

    Args:
        switchover: how it is moved in the end.
        memory: of the guest.
        hot: the part of it that the guest writes to.
        dirty_rate: what the guest writes a second.
        downtime: how long it may stand still, for a switchover by stop-and-copy.
        runs: turns of each way; medians are shown.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    with progress(output) as say:
        command = ("--memory", f"{memory}B", "--hot", f"{hot}B", "--switchover", switchover)
        writing, idle = (Moved((*command, "--downtime", downtime), rate) for rate in (dirty_rate, 0.0))
        measures = [
            Measure(
                name="blackout",
                text="from READY to RUNNING",
                ways={OURS: writing, IDLE: idle},
                bounds={IDLE: at_most(2.0, 1.5)},
            ),
            Measure(
                name="guest",
                text="between two writes",
                ways={OURS: lambda: writing.guest_s},
            ),
            Measure(
                name="total",
                text="the whole migration",
                ways={OURS: lambda: writing.total_s, IDLE: lambda: idle.total_s},
                detail=True,
            ),
        ]
        taken = take(measures, runs, say)
    rate = writing.rate_bytes_s
    Report(
        bench="blackout",
        runs=runs,
        taken=taken,
        principal="blackout",
        conditions={
            "guest": f"{size_text(memory)}, of which it writes {size_text(hot)}, {switchover}",
            "written": f"{rate_text(rate)} in the last turn, {rate_text(dirty_rate)} asked for",
        },
    ).show(output)


class Moved:
    """A turn: a whole migration of real processes; seconds of blackout.

    Attributes:
        guest_s: the blackout as the guest saw it, in the last turn; 0 for one that does not write.
        total_s: what the migration took.
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
        self.total_s = float(found["seconds_total"])
        self.rate_bytes_s = float(found["write_rate_achieved"])
        return float(found["seconds_blackout"])
