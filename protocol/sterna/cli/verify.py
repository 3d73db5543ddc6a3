"""`sterna verify`: whether what a recording holds is what the specification asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sterna.cli.endpoint import Flag
from sterna.cli.events import Fields
from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.reading import (
    DEFAULT_MEMORY,
    UNHASHED,
    File,
    Memory,
    fault_text,
    opened,
    recording_fields,
    session_fields,
)
from sterna.cli.units import Json
from sterna.core.words import count_text, size_text
from sterna.observe.budget import Budget
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended
from sterna.observe.recording import RecordingError, RecordingItem, RecordingReader
from sterna.observe.sessions import GaveUp, Over, Sessions
from sterna.registry import Sender

# Sessions that are told one by one: a recording may have any number of them.
SESSIONS_TOLD: Final = 1000
# How much is read between two looks of whoever watches: a tenth of a second.
STEP_BYTES: Final = 64 << 20


def verify(
    file: File, /, *, completed: Flag = False, memory: Memory = DEFAULT_MEMORY, json: Json = False
) -> int:
    """Check a recording: every frame, when it came, every page, and the digests that both sides compared.

    Exit code 0: nothing is wrong with what it holds. 1: the first thing that is wrong is named, with the
    clause of spec/protocol.md that it breaks. 2: it could not be checked, or not all of it: no recording, a
    damaged one, one without a session, or one of a guest too large for --memory.

    A session that was cut, aborted or refused is not wrong by itself: what it means for the guest is told. So
    it is with a recording that was cut off: what is there counts.

    Args:
        file: a recording (`--record`), or - for stdin.
        completed: take a session that did not end in order as wrong.
        memory: keep at most this much of guests, batches and state in memory.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    with opened(file) as stream:
        reader = RecordingReader(stream)
        checked = _Checked(output, completed=completed)
        checked.run(reader, memory)
    checked.tell(reader)
    return checked.exit_code


@dataclass
class _Checked:
    """What came of one recording."""

    output: Output
    completed: bool
    sessions: list[Fields] = field(default_factory=list)
    count: int = 0
    bad: int = 0
    unjudged: int = 0
    empty: int = 0
    unhashed: int = 0
    frames: int = 0
    pages: int = 0
    bulk_bytes: int = 0
    damage: RecordingError | None = None
    gave_up: str = ""

    def run(self, reader: RecordingReader, memory_bytes: int) -> None:
        """Read it to its end, or to where it is damaged."""
        sessions = Sessions(reader.side, reader.clock, budget=Budget(memory_bytes))
        for step in itertools.chain(sessions.follow(self._items(reader)), sessions.end()):
            match step:
                case Over(connection, follower):
                    self._over(connection, follower)
                case GaveUp(text):
                    self.gave_up = text
                case _:
                    pass

    @property
    def exit_code(self) -> Exit:
        """What it amounts to."""
        if self.bad:
            return Exit.FAILED
        incomplete = self.unjudged or self.damage is not None or self.count == self.empty
        return Exit.USAGE if incomplete else Exit.OK

    def tell(self, reader: RecordingReader) -> None:
        """The end of it all, for people and for programs."""
        for line in self._lines(reader):
            self.output.say(line)
        damage = self.damage
        self.output.result(
            {
                "ok": self.exit_code is Exit.OK,
                "recording": {
                    **recording_fields(reader),
                    "cut_off": reader.cut_off,
                    "gave_up": self.gave_up or None,
                    "damage": None
                    if damage is None
                    else {"clause": damage.clause, "offset": damage.offset, "text": str(damage)},
                },
                "sessions": self.sessions,
                "session_count": self.count,
                "frames": self.frames,
                "pages": self.pages,
                "bulk_bytes": self.bulk_bytes,
            }
        )

    def _items(self, reader: RecordingReader) -> Iterator[RecordingItem]:
        """The records as far as they are good. Whoever watches sees how far that is by now."""
        shown = self.output.console.status("reading") if self.output.live else None
        if shown is not None:
            shown.start()
        next_step = STEP_BYTES
        try:
            for item in reader:
                yield item
                if shown is not None and reader.offset >= next_step:
                    shown.update(f"{size_text(reader.offset)} read")
                    next_step = reader.offset + STEP_BYTES
        except RecordingError as error:
            self.damage = error
        finally:
            if shown is not None:
                shown.stop()

    def _over(self, connection: int, follower: Follower) -> None:
        if follower.session is not None:
            self._data_over(connection, follower)
            return
        summary, outcome = follower.summary, follower.outcome()
        fields = session_fields(connection, follower)
        unfinished = self.completed and outcome.ended is not Ended.COMPLETED
        wrong = follower.fault is not None or (unfinished and not follower.trouble)
        self.count += 1
        self.bad += wrong
        self.unjudged += bool(follower.trouble)
        self.empty += outcome.ended is Ended.NOTHING and not wrong
        self.unhashed += summary.hashed is False
        self.frames += sum(summary.frames.values())
        self.pages += summary.pages
        self.bulk_bytes += summary.bulk_bytes
        if len(self.sessions) < SESSIONS_TOLD:
            self.sessions.append({**fields, "ok": not wrong and not follower.trouble})
            self.output.say(f"connection {connection}: {_verdict(follower, unfinished=unfinished)}")
            if summary.hashed is False:
                self.output.say(f"  {UNHASHED}")

    def _data_over(self, connection: int, follower: Follower) -> None:
        """A data connection: its pages are those of its session."""
        self.frames += sum(follower.summary.frames.values())
        self.bad += follower.fault is not None
        self.unjudged += bool(follower.trouble)
        if follower.stopped:
            self.output.say(f"connection {connection}, of data: {_verdict(follower, unfinished=False)}")

    def _lines(self, reader: RecordingReader) -> Iterable[str]:
        if self.count > len(self.sessions):
            yield f"and {count_text(self.count - len(self.sessions), 'more connection')}"
        if self.damage is not None:
            yield f"the recording is damaged, and what follows was not checked: {self.damage}"
        elif reader.cut_off:
            yield "the recording was cut off: its recorder was ended before it could close it"
        if self.gave_up:
            yield f"the recorder gave up: {self.gave_up}"
        if self.count == self.empty:
            yield "there is no session in it: nothing was checked"
        hashed = f"hashed{', but for those of sessions without hashes' if self.unhashed else ''}"
        pages = f"{count_text(self.pages, 'page')} ({size_text(self.bulk_bytes)}) {hashed}"
        counted = f"{count_text(self.frames, 'frame')}, {pages}"
        words = {Exit.OK: "OK", Exit.FAILED: "WRONG", Exit.USAGE: "NOT CHECKED"}
        yield f"{words[self.exit_code]}: {count_text(self.count, 'connection')}, {counted}"


def _verdict(follower: Follower, *, unfinished: bool) -> str:
    """A session, for people."""
    outcome = follower.outcome()
    frames = sum(follower.summary.frames.values())
    if follower.fault is not None:
        # Who broke it has been told; how it ended tells whether the other side noticed.
        return f"WRONG: {fault_text(follower.fault)}; {outcome.text}"
    if follower.trouble:
        return f"NOT CHECKED: {follower.trouble}; {outcome.text}"
    word = "NOT COMPLETED" if unfinished else "OK"
    source = follower.directions[Sender.SOURCE].bytes
    return f"{word}: {outcome.text}; {count_text(frames, 'frame')}, {size_text(source)} from the source"
