"""The rounds of a migration for people: a table that grows while it runs, plain lines where nobody watches.

It is drawn from the same objects that `--follow` writes, so the demo shows another process's migration as
that process would. What they say was partly said by a peer: nothing of it is trusted but to be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sterna.cli.output import Output, printable
from sterna.core.words import duration_text, rate_text, share_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

COLUMNS = ("round", "sent", "in", "rate", "written meanwhile", "would stop for")
_BAR_CELLS = 24
_PAGE_BYTES = 4096


class Display:
    """Shows events of one migration.

    Args:
        output: the command's output; its terminal decides between a live table and lines.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._silent = output.json
        self._live: Live | None = None
        self._rows: list[tuple[str, ...]] = []
        self._verdict = ""
        self._phase = ""
        self._round: int | None = None
        self._last = False
        self._round_bytes = 0.0
        self._bytes_before = 0.0
        self._bytes_sent = 0.0
        self._page_bytes = _PAGE_BYTES
        self._sees_writes = False  # the source does
        self._done = 0.0

    def say(self, text: str, *, style: str = "") -> None:
        """A line of its own, above the table if that is up."""
        if self._live is not None:
            self._live.console.print(printable(text), style=style or None, markup=False)
        else:
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
        match event.get("event"):
            case "migration":
                self._page_bytes = int(_number(event, "page_bytes")) or _PAGE_BYTES
                self._sees_writes = "tracker" in event
            case "phase":
                self._phase = str(event.get("phase", ""))
            case "round_started":
                self._start_round(event)
            case "progress":
                self._bytes_sent = max(self._bytes_sent, _number(event, "bytes_sent"))
            case "round_finished":
                self._finish_round(event)
            case "decided":
                self._decided(event)
            case "finished":
                self._round = None
                self._verdict = f"{event.get('outcome')}"
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
        name = "blackout" if self._last else str(int(_number(event, "round")))
        sent, seconds = _number(event, "bytes"), _number(event, "seconds")
        rate = rate_text(sent / seconds) if seconds > 0 else ""
        dirty = _number(event, "dirty_bytes")
        written = "" if self._last or not self._sees_writes else size_text(dirty)
        if written and seconds > 0:
            written += f" ({rate_text(dirty / seconds)})"
        if throttle := _number(event, "throttle"):
            written += f", slowed down by {share_text(throttle)}"
        self._rows.append((name, size_text(sent), duration_text(seconds), rate, written, ""))
        self._round = None
        if self._watched:
            return
        what = "paused guest" if self._last else f"round {name}"
        line = f"{what}: {size_text(sent)} in {duration_text(seconds)}"
        self.say(f"{line}; written meanwhile: {written}" if written else line)

    def _decided(self, event: Mapping[str, object]) -> None:
        self._verdict = str(event.get("verdict", ""))
        if self._rows:
            stop = duration_text(_number(event, "predicted_downtime_s"))
            self._rows[-1] = (*self._rows[-1][:-1], stop)
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

        table = Table(box=box.SIMPLE_HEAD)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row, style="bold" if row[0] == "blackout" else None)
        if self._round is not None:
            name = "blackout" if self._last else str(self._round)
            table.add_row(name, self._bar(), style="cyan")
        return Group(table, Text(printable(self._verdict), style="dim"))

    def _bar(self) -> str:
        """The running round. Zero pages take no bytes, so a round may end early, but it never runs back."""
        sent = self._bytes_sent - self._bytes_before
        share = min(1.0, sent / self._round_bytes) if self._round_bytes > 0 else 1.0
        self._done = max(self._done, share)
        full = round(self._done * _BAR_CELLS)
        return "━" * full + "╌" * (_BAR_CELLS - full)


def _number(event: Mapping[str, object], name: str) -> float:
    value = event.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
