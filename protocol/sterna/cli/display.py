"""The rounds of a migration for people: a table that grows while it runs, plain lines where nobody watches.

It is drawn from the same objects that `--follow` writes, so the demo shows another process's migration as
that process would. What they say was partly said by a peer: nothing of it is trusted but to be shown.

A table belongs to one migration: a listener has one after the other, and a peer that is turned away while a
guest comes must not write into that one's table. So events carry the number of their `connection`, where
there is more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sterna.cli.output import Output, printable
from sterna.core.words import duration_text, rate_text, share_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_BAR_CELLS: Final = 40
_PAGE_BYTES: Final = 4096
_BLACKOUT: Final = "blackout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A round. What is not known, or not known yet, is empty."""

    name: str
    sent: str
    took: str
    rate: str = ""
    written: str = ""
    slowed: str = ""
    stop: str = ""


# Header, what stands below it, and whether only a source knows it. All at their widest fill 79 cells.
_COLUMNS: Final[tuple[tuple[str, Callable[[Row], str], bool], ...]] = (
    ("round", lambda row: row.name, False),
    ("sent", lambda row: row.sent, False),
    ("in", lambda row: row.took, False),
    ("rate", lambda row: row.rate, False),
    ("written meanwhile", lambda row: row.written, True),
    ("slowed", lambda row: row.slowed, True),
    ("would stop", lambda row: row.stop, True),
)


class Display:
    """Shows events of one migration after the other.

    Args:
        output: the command's output; its terminal decides between a live table and lines.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._silent = output.json
        self._live: Live | None = None
        self._running = False
        self._begin({})

    def _begin(self, event: Mapping[str, object]) -> None:
        self._connection = event.get("connection")
        self._rows: list[Row] = []
        self._verdict = ""
        self._round: int | None = None
        self._last = False
        self._has_moved = False  # pages follow the guest
        self._round_bytes = 0.0
        self._bytes_before = 0.0
        self._bytes_sent = 0.0
        self._page_bytes = int(_number(event, "page_bytes")) or _PAGE_BYTES
        self._sees_writes = "tracker" in event  # the source does
        self._done = 0.0

    def say(self, text: str, *, style: str = "") -> None:
        """A line of its own, above the table if that is up."""
        self._output.say(text, style=style)

    def close(self) -> None:
        """Leave the table as it is. Legal twice."""
        live, self._live = self._live, None
        if live is not None:
            live.update(self._table(), refresh=True)
            live.stop()

    def show(self, event: Mapping[str, object]) -> None:
        """An event."""
        if self._silent:
            return
        kind = event.get("event")
        if kind == "migration" and not self._running:
            self._running = True
            self._begin(event)
        elif not self._running or event.get("connection") != self._connection:
            return
        match kind:
            case "round_started":
                self._start_round(event)
            case "progress":
                self._bytes_sent = max(self._bytes_sent, _number(event, "bytes_sent"))
            case "round_finished":
                self._finish_round(event)
            case "decided":
                self._decided(event)
            case "pages_follow":
                self._has_moved = True
                follow = size_text(_number(event, "pages") * self._page_bytes)
                self._verdict = f"the guest has moved, {follow} of its memory follow"
                self.say(self._verdict)
            case "pages_followed":
                took = duration_text(_number(event, "seconds_until_complete"))
                self._verdict = f"all of its memory is there, after {took}"
                self.say(self._verdict)
            case "link_lost":
                self._round = None
                self._verdict = "the link is lost, the guest runs on at the source"
                waits = ""
                if self._has_moved:
                    self._verdict = "the link is lost, the guest at the destination waits for its pages"
                    waits = ", and the guest at the destination may wait for it"
                self.say(f"link lost ({event.get('text')}): it may come back{waits}", style="yellow")
            case "session_resumed":
                missing = size_text(_number(event, "pages_missing") * self._page_bytes)
                self._verdict = f"taken up again, {missing} are missing"
                times = ordinal(int(_number(event, "times")))
                self.say(f"link back, for the {times} time: {missing} are missing")
            case "finished":
                self._round = None
                self._running = False
                self._verdict = str(event.get("outcome"))
                self.close()
                return
            case _:
                return
        self._refresh()

    def _start_round(self, event: Mapping[str, object]) -> None:
        self._round = int(_number(event, "round"))
        self._last = event.get("last") is True
        self._round_bytes = _number(event, "pages") * self._page_bytes
        self._bytes_before = self._bytes_sent
        self._done = 0.0
        if self._last:
            self._verdict = "the guest is paused: its last pages, its state, the handover"

    def _finish_round(self, event: Mapping[str, object]) -> None:
        sent, seconds = _number(event, "bytes"), _number(event, "seconds")
        dirty, throttle = _number(event, "dirty_bytes"), _number(event, "throttle")
        written = ""
        if self._sees_writes and not self._last:
            written = size_text(dirty) + (f" ({rate_text(dirty / seconds)})" if seconds > 0 else "")
        row = Row(
            name=_BLACKOUT if self._last else str(int(_number(event, "round"))),
            sent=size_text(sent),
            took=duration_text(seconds),
            rate=rate_text(sent / seconds) if seconds > 0 else "",
            written=written,
            slowed=share_text(throttle) if throttle else "",
        )
        self._rows.append(row)
        self._round = None
        if not self._watched:
            self.say(_line(row))

    def _decided(self, event: Mapping[str, object]) -> None:
        self._verdict = str(event.get("verdict", ""))
        if self._rows:
            stop = duration_text(_number(event, "predicted_downtime_s"))
            self._rows[-1] = replace(self._rows[-1], stop=stop)
        if not self._watched:
            self.say(f"  {self._verdict}")

    @property
    def _watched(self) -> bool:
        return self._output.live

    def _refresh(self) -> None:
        if not self._watched:
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._output.console, auto_refresh=False)
            self._live.start()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._rows:
            slowed = any(row.slowed for row in self._rows)
            columns = [
                (name, cell)
                for name, cell, of_source in _COLUMNS
                if (self._sees_writes or not of_source) and (slowed or name != "slowed")
            ]
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            for name, _ in columns:
                table.add_column(name, justify="left" if name == "round" else "right", no_wrap=True)
            for row in self._rows:
                cells = (cell(row) for _, cell in columns)
                table.add_row(*cells, style="bold" if row.name == _BLACKOUT else None)
            parts.append(table)
        if self._round is not None:
            name = _BLACKOUT if self._last else f"round {self._round}"
            parts.append(Text(f"{name} {self._bar()}", style="cyan"))
        return Group(*parts, Text(printable(self._verdict), style="dim"))

    def _bar(self) -> str:
        """The running round. Zero pages take no bytes, so a round may end early, but it never runs back."""
        sent = self._bytes_sent - self._bytes_before
        share = min(1.0, sent / self._round_bytes) if self._round_bytes > 0 else 1.0
        self._done = max(self._done, share)
        full = round(self._done * _BAR_CELLS)
        return "━" * full + "╌" * (_BAR_CELLS - full)


def _line(row: Row) -> str:
    """A row where nobody watches."""
    what = "paused guest" if row.name == _BLACKOUT else f"round {row.name}"
    written = f"; written meanwhile: {row.written}" if row.written else ""
    slowed = f", slowed down by {row.slowed}" if row.slowed else ""
    return f"{what}: {row.sent} in {row.took}{written}{slowed}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th..."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number // 10 % 10 == 1 else ending}"


def _number(event: Mapping[str, object], name: str) -> float:
    value = event.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
