"""Where a command that takes a while says how it goes: lines of JSON for programs, a display for people.

`--follow` writes every event as one line of JSON to stdout (`sterna.cli.events`), the command's result as
the last one. People get text on stderr in any case, and a display that moves if stderr is a terminal.

All that takes time which a guest would stand still for, a tenth of a short blackout, or in which it would
write more before the next round or the pause. So from the end of a round on, and in a blackout, what comes is
told within twice `TOLD_WITHIN_S`: in its order, and with the time at which it came.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import trio

from sterna.cli.display import Display
from sterna.cli.events import event_fields
from sterna.cli.exits import exit_of, gravest
from sterna.cli.output import SCHEMA, Output, write_line
from sterna.core.events import Event, PhaseEntered, RoundFinished
from sterna.core.tables import STANDING
from sterna.errors import ConfigError, SternaError

_log = logging.getLogger(__name__)

# Twice what a blackout of little memory takes. One that takes longer is told as it goes on.
TOLD_WITHIN_S: Final = 0.05


class Reporter:
    """Tells of one command. Use it as a context manager around the command's work.

    Args:
        output: the command's output.
        follow: whether --follow was given.

    Raises:
        ConfigError: --json and --follow both claim stdout.
    """

    def __init__(self, output: Output, *, follow: bool = False) -> None:
        if output.json and follow:
            raise ConfigError(
                "--json and --follow exclude each other: the last line of --follow is the result"
            )
        self.output = output
        self.follow = follow
        self._display = Display(output)
        self._kept: list[tuple[int, Mapping[str, object]]] = []  # with when each came
        self._keeps = False
        self._kept_since_s = 0.0  # trio's time
        self._keeping = trio.CancelScope()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_kept()
        self._display.close()
        if error is not None:
            self._line({"event": "error", **error_fields(error)})

    def on_event(self, event: Event) -> None:
        """An event of the machine; the hook for `sterna.net.options.Options`."""
        self.watch(event)
        self.emit(event_fields(event))

    def watch(self, event: Event) -> None:
        """Before an event is told: whether the guest stands still from here on, or the next round is near."""
        stands = isinstance(event, PhaseEntered) and event.phase in STANDING
        if not (stands or isinstance(event, RoundFinished)) or not trio.lowlevel.in_trio_run():
            return
        now_s = trio.current_time()
        if not self._keeps:
            self._kept_since_s, self._keeping = now_s, trio.CancelScope(deadline=now_s + TOLD_WITHIN_S)
            trio.lowlevel.spawn_system_task(self._tell_in_time)
            self._keeps = True
        elif stands:  # once more, and not again and again: others have rounds and blackouts, too
            self._keeping.deadline = min(now_s, self._kept_since_s + TOLD_WITHIN_S) + TOLD_WITHIN_S

    async def _tell_in_time(self) -> None:
        try:
            with self._keeping:
                await trio.sleep_forever()
        finally:
            self._keeps = False
        try:
            self._tell_kept()
        except Exception:  # noqa: BLE001  # what shows a migration must not end it, nor the process
            _log.exception("what happened behind a round, or in a blackout, cannot be told")

    def _tell_kept(self) -> None:
        kept, self._kept = self._kept, []
        for time_ns, fields in kept:
            self._line(fields, time_ns)
            self._display.show(fields)

    def of_connection(self, number: int) -> ConnectionReporter:
        """The same for one of several connections: their events can be told apart."""
        return ConnectionReporter(self, number)

    def emit(self, fields: Mapping[str, object]) -> None:
        """An event, which has its name as `event`."""
        self._kept.append((now_ns(), fields))
        if not self._keeps:
            self._tell_kept()

    def notice(self, text: str) -> None:
        """Something that a person must know."""
        self._tell_kept()
        self._line({"event": "notice", "text": text})
        self._display.say(text, style="yellow")

    def say(self, text: str) -> None:
        """A sentence for people only."""
        self._display.say(text)

    def result(self, fields: Mapping[str, object]) -> None:
        """The command's result, once, at the end."""
        self._tell_kept()
        self._display.close()
        self._line({"event": "result", **fields})
        self.output.result(fields)

    def _line(self, fields: Mapping[str, object], time_ns: int | None = None) -> None:
        if not self.follow:
            return
        at_ns = now_ns() if time_ns is None else time_ns
        write_line({"schema": SCHEMA, "event": fields["event"], "time_ns": at_ns, **fields})


class ConnectionReporter:
    """Adds a connection's number to its events."""

    def __init__(self, reporter: Reporter, number: int) -> None:
        self._reporter = reporter
        self._number = number

    def on_event(self, event: Event) -> None:
        """An event of the machine."""
        self._reporter.watch(event)
        self.emit(event_fields(event))

    def emit(self, fields: Mapping[str, object]) -> None:
        """An event, which has its name as `event`."""
        self._reporter.emit({**fields, "connection": self._number})


def now_ns() -> int:
    """CLOCK_BOOTTIME, the clock of the guests' journals and of the endpoints."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def error_fields(error: BaseException) -> dict[str, object]:
    """An exception that ends a command."""
    cause = gravest(error)
    if isinstance(cause, ConfigError):
        code = "usage"
    elif isinstance(cause, SternaError):
        code = cause.code.name.lower()
    else:
        code = "interrupted" if isinstance(cause, KeyboardInterrupt) else "internal"
    return {"code": code, "text": str(cause), "exit": int(exit_of(error))}
