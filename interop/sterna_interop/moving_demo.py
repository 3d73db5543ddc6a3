"""Sterna's way of moving a guest that writes: `sterna demo`, with holders, endpoints and durable records.

The guest is of the process kind. CPU seconds are what the demo says of its processes. Memory is that of the
endpoints, watched from outside: they are found among the demo's children by the command that they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from sterna.cli.units import format_duration
from sterna.errors import GuestError
from sterna_interop.moving import WATCH_EVERY_S, Side, beyond_guest_bytes, forked
from sterna_interop.moving_written import Written, WrittenMove

# What the guests do, and what is counted, beside QEMU's.
WRITES: Final = (
    "each guest writes some bytes of each page that it comes to: Sterna's the 24 of its head, which it "
    "verifies first, QEMU's a word of 4"
)
WHOLE: Final = (
    "a guest of Sterna's that verifies and writes all 4096 bytes of each page, beside the same turns of QEMU"
)
CPU: Final = (
    "endpoints and holders from the first word of the session on, and QEMU's processes, both sides; without "
    "the guest's own thread, which is QEMU's vCPU: with TCG it also notes there which pages were written"
)
MEMORY: Final = "of the endpoints, beyond the guest's and an idle endpoint's; in one turn of its own"

_SOURCE: Final = b"migrate"
_DESTINATION: Final = b"serve"
_PROCESSES: Final = 4
_WORD: Final = 4  # of a command line: behind python -P -m sterna


class Demo:
    """A way: a demo a turn, with these options.

    Attributes:
        command: what is run.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self.command = (
            *(sys.executable, "-P", "-m", "sterna", "demo", "--guest", "process", "--json"),
            *options,
        )

    def move(self, *, watched: bool = False) -> WrittenMove:
        """See `Way.move`.

        Raises:
            GuestError: it did not move, or its audit found an error.
        """
        with ExitStack() as stack:
            demo = stack.enter_context(
                subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
            side = stack.enter_context(_watching(demo.pid)) if watched else None
            said, _ = demo.communicate()
            peak_bytes = (0, 0) if side is None else _peaks(side)
        found: Mapping[str, object] = json.loads(said or b"{}")
        if demo.returncode:
            why = found.get("error") or found.get("code") or found.get("failures")
            raise GuestError(f"sterna demo has ended with exit code {demo.returncode}: {why}")
        return WrittenMove(
            seconds=_number(found, "seconds_until_run"),
            blackout_s=_number(found, "seconds_blackout"),
            rate_bytes_s=_number(found, "write_rate_achieved"),
            sent_bytes=int(_number(found, "bytes_sent")),
            cpu_s=sum(_costs(found)),
            blackout_guest_s=_number(found, "seconds_blackout_guest", missing=0.0),
            peak_bytes=peak_bytes,
        )


def demo_of(written: Written, *, whole: bool = False) -> Demo:
    """What moves this guest over plain TCP, to where there is memory beforehand, as at QEMU's destination.

    It writes the heads of pages, as QEMU's writes a word of each; or `whole` pages.
    """
    return Demo(
        (
            *("--insecure", "--room", "--switchover", written.switchover),
            *(() if whole else ("--heads",)),
            *("--memory", f"{written.memory_bytes}B", "--hot", f"{written.hot_bytes}B"),
            *(
                "--dirty-rate",
                f"{written.rate_bytes_s}B/s",
                "--downtime",
                format_duration(written.downtime_s),
            ),
        )
    )


def _number(fields: Mapping[str, object], name: str, missing: float | None = None) -> float:
    value = fields.get(name)
    value = missing if value is None else value
    if not isinstance(value, int | float):
        raise GuestError(f"sterna demo does not say {name}")
    return float(value)


def _costs(fields: Mapping[str, object]) -> list[float]:
    """CPU seconds of endpoints and holders, without the guest's."""
    costs = fields.get("cpu_seconds")
    if not isinstance(costs, dict) or len(costs) != _PROCESSES:
        raise GuestError("sterna demo does not say cpu_seconds of all its processes")
    return [float(seconds) for seconds in costs.values()]


# ---- what its endpoints take ----


@contextmanager
def _watching(demo: int) -> Iterator[Side]:
    """A process that notes what a demo's endpoints have, and tells it when it is told to."""

    def work(pipe: Connection) -> None:
        idle = 0
        peaks = {_SOURCE: 0, _DESTINATION: 0}
        while not pipe.poll(WATCH_EVERY_S):
            now = {role: sum(map(beyond_guest_bytes, pids)) for role, pids in _endpoints(demo).items()}
            if _SOURCE in now:
                peaks = {role: max(peak, now.get(role, 0)) for role, peak in peaks.items()}
            else:  # an endpoint to which nobody has come yet
                idle = idle or now.get(_DESTINATION, 0)
        pipe.send(tuple(max(0, peak - idle) for peak in peaks.values()))

    with forked("watcher", work) as side:
        yield side


def _peaks(side: Side) -> tuple[int, int]:
    side.tell(0)
    source, destination = side.hear()
    return int(source), int(destination)


def _endpoints(demo: int) -> dict[bytes, list[int]]:
    """The processes of each endpoint that is there: itself, and what it has forked."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.name))
    found: dict[bytes, list[int]] = {}
    for pid in children.get(demo, []):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(words) > _WORD and words[_WORD] in {_SOURCE, _DESTINATION}:
                found[words[_WORD]] = [pid, *children.get(pid, [])]
    return found
