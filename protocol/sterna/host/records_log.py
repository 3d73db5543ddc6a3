"""A guest's records on disk.

::

    <directory>/<guest>/log-<id>   a header and one line a record
    <directory>/<guest>/head       which log, and how many of its records were reported durable; in two places

To append is to write the line, sync the log, and only then to report; before the next line, the head is
written and synced. After a crash the head therefore names no more than the log has, and the log has no more
beyond it than one append has written. That may have been reported or not, so it is kept, after it was written
and synced once more, since a failed sync may have left it in the cache alone.

Durable is a record by its own line: the head only shows that none was lost later. That is why it can wait for
a moment in which no guest stands still. Records of which the first counts for nothing without the second are
appended together, at the price of one.

What the head names and the log lacks was lost. Then all of the guest's records count as missing [ONE-57]:
a history that shows CLAIMING and has lost START would prove what is not true.

A log that has become long is begun anew with what still matters of it: a second log is made and synced, and
the head is written once, to name that one.

Blocking, not for use by two threads or processes; `sterna.host.records_keeper` sees to that.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from sterna.core.history import History, essence
from sterna.core.records import Record
from sterna.errors import RecordError
from sterna.host.durable import Files
from sterna.host.records_codec import (
    LINE_BYTES_MAX,
    PLACE_BYTES,
    Head,
    Header,
    check_of,
    decode_head,
    decode_header,
    decode_record,
    encode_head,
    encode_header,
    encode_record,
)
from sterna.host.slots import check_guest_id

HEAD: Final = "head"
LOG_PREFIX: Final = "log-"
MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
# Some 3 KiB a migration. What has not become shorter by being begun anew has hundreds of open sessions.
LOG_BYTES_MAX: Final = 1 << 20
_LONG_BYTES: Final = 64 << 10
FULL: Final = "too many sessions of the guest are open; find out how they ended, and let that be recorded"
# Lines that one append may write: CLAIMING, with what decides it.
TOGETHER_MAX: Final = 2
# Room that a migration's records will find, whoever fills the disk meanwhile.
_RESERVE_BYTES: Final = 16 << 10
NAMES_MAX: Final = 1000


class RecordsMissing(RecordError):  # noqa: N818 - it names what is wrong
    """Records were lost: none of the guest's counts any more [ONE-57]."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is on the disk.

    Attributes:
        history: the records that there are.
        lines: the log's lines that count, the header's first.
        head: the head that counts.
        rest: what stands behind the lines; zeros if nothing was cut off.
        others: logs that the head does not name, of which a crash has left the one or the other.
    """

    history: History
    lines: tuple[bytes, ...]
    head: Head
    rest: bytes
    others: tuple[str, ...] = ()

    @property
    def beyond(self) -> int:
        """How many of the last records the head does not name yet."""
        return len(self.history.records) - self.head.count


def folder(directory: str, guest: bytes) -> str:
    """Where a guest's records are."""
    return f"{directory}/{check_guest_id(guest).hex()}"


def look(files: Files, directory: str, guest: bytes) -> Found | None:
    """What is on the disk, nothing changed. None if there are no records, and never were as far as one sees.

    Raises:
        RecordsMissing: records were lost.
        OSError: as the files have it.
    """
    place = folder(directory, guest)
    head, torn = _look_for_head(files.read(f"{place}/{HEAD}", 2 * PLACE_BYTES) or b"", place)
    names = [each for each in files.names(place, NAMES_MAX) or () if each.startswith(LOG_PREFIX)]
    if head is None:
        # The head is made behind the log, and before the first record.
        if any(len(_lines(_read_log(files, f"{place}/{name}"))) > 1 for name in names):
            raise _missing(place, "the head is gone")
        return None
    path = log_path(place, head.log)
    data = _read_log(files, path)
    lines = _lines(data)
    header = decode_header(lines[0]) if lines else None
    history, lines = _replay(guest, lines, place) if header is not None else (History(guest), ())
    if head.count == 0 and not history.records:
        return None
    if header != Header(guest, head.log):
        raise _missing(place, "the log is gone, or another one")
    if files.inode(path) != head.inode:
        raise _missing(place, "the log is a copy, restored from somewhere")
    count = len(history.records)
    if count < head.count or check_of(lines[head.count]) != head.last:
        text = f"{count} records fit, and the head tells of {head.count}"
        raise _missing(place, f"the log has lost its end: {text}")
    # A head that was cut off names a record that is in the log, or a log that is there.
    others = tuple(sorted(f"{place}/{name}" for name in names if f"{place}/{name}" != path))
    beyond = count - head.count
    if beyond > TOGETHER_MAX or (torn and not beyond and not others):
        raise _missing(place, f"the head is older than the log, by {beyond} records")
    return Found(history, lines, head, data[sum(map(len, lines)) :], others)


def log_path(place: str, log: bytes) -> str:
    """Where the log of this id is."""
    return f"{place}/{LOG_PREFIX}{log.hex()[:16]}"


def _read_log(files: Files, path: str) -> bytes:
    return files.read(path, LOG_BYTES_MAX + _RESERVE_BYTES) or b""


def _missing(place: str, what: str) -> RecordsMissing:
    text = "no record of the guest counts any more, and who owns it has to be found out elsewhere"
    return RecordsMissing(f"{place}: {what}; {text} (sterna resolve --records-lost)")


def _look_for_head(data: bytes, place: str) -> tuple[Head | None, bool]:
    """The head, and whether its other place was cut off in the middle of a write."""
    places = [data[:PLACE_BYTES], data[PLACE_BYTES : 2 * PLACE_BYTES]]
    heads = [decode_head(each) for each in places]
    newest = max((each for each in heads if each is not None), key=lambda each: each.turn, default=None)
    if newest is None:
        return None, False
    other = heads[(newest.turn + 1) % 2]
    if heads[newest.turn % 2] is not newest or (other is not None and other.turn != newest.turn - 1):
        raise _missing(place, "the head's places do not fit together")
    blank = newest.turn == 0 and not places[1].strip()
    return newest, other is None and not blank


def _lines(data: bytes) -> tuple[bytes, ...]:
    """The lines that are whole; what is behind them is looked at by nobody."""
    found: list[bytes] = []
    start = 0
    while (end := data.find(b"\n", start, start + LINE_BYTES_MAX)) >= 0:
        found.append(data[start : end + 1])
        start = end + 1
    return tuple(found)


def _replay(guest: bytes, lines: tuple[bytes, ...], place: str) -> tuple[History, tuple[bytes, ...]]:
    """The records in the lines behind the header, as far as they fit; and the lines so far."""
    history, count = History(guest), min(len(lines), 1)
    for line in lines[1:]:
        record = decode_record(line, count, check_of(lines[count - 1]))
        if record is None:
            break
        try:
            history = history.after(record)
        except RecordError as error:
            raise _missing(place, f"record {count} contradicts an earlier one ({error.detail})") from error
        count += 1
    return history, lines[:count]


class RecordLog:
    """The records of one guest. Opening it makes a log if there is none, and mends what a crash has left.

    Args:
        files: the machine's, or those of a test.
        directory: of all guests' records; it exists.
        guest: its id.

    Attributes:
        history: what is durable.
        is_settled: whether the head names all of it.

    Raises:
        RecordsMissing: records were lost.
        OSError: as the files have it. After one, this object is of no use: open the log again.
    """

    def __init__(self, files: Files, directory: str, guest: bytes) -> None:
        self._files = files
        self._place = folder(directory, guest)
        self._head_file = f"{self._place}/{HEAD}"
        found = look(files, directory, guest)
        if found is None:
            found = self._make(directory, guest)
        self.is_settled = True
        self._take(found)
        self._mend(found)
        if self._end > _LONG_BYTES:
            self._begin_anew(found)
        self.history = self._history

    def _take(self, found: Found) -> None:
        self._history = found.history
        self._head = found.head
        self._log = log_path(self._place, found.head.log)
        self._last = check_of(found.lines[-1])
        self._end = sum(map(len, found.lines))

    def append(self, *records: Record) -> None:
        """Make records durable, at most `TOGETHER_MAX`; they are when this returns.

        A crash may leave the first of them alone, never the second. `settle` is owed then, and made up for by
        the next append.

        Raises:
            RecordConflict: another record stands against one of them; nothing has changed.
            RecordError: a field cannot be written, or there are too many records.
            OSError: they may be durable or not.
        """
        history, last, lines = self.history, self._last, b""
        for record in records:
            longer = history.after(record)
            if longer is history:
                continue
            try:
                line = encode_record(record, len(longer.records), last)
            except ValueError as error:
                raise RecordError(f"{record.kind}: {error}") from error
            history, last, lines = longer, check_of(line), lines + line
        if not lines:
            return
        if self._end + len(lines) > LOG_BYTES_MAX:
            raise RecordError(f"{self._log} is full; {FULL}")
        self.settle()
        self._files.write(self._log, self._end, lines)
        self._files.sync(self._log)
        self._end += len(lines)
        self._last = last
        self.is_settled = False
        self.history = history

    def settle(self) -> None:
        """Let the head name what is durable.

        Raises:
            OSError: what is durable is so all the same; but open the log again.
        """
        if not self.is_settled:
            self._write_head(len(self.history.records))
            self.is_settled = True

    def _make(self, directory: str, guest: bytes) -> Found:
        """A log without records. What a crash has left of an earlier attempt holds none either."""
        self._files.make_directory(self._place, DIRECTORY_MODE)
        self._files.sync_directory(directory)
        for name in self._files.names(self._place, NAMES_MAX) or ():
            if name == HEAD or name.startswith(LOG_PREFIX):
                self._files.remove(f"{self._place}/{name}")
        made = self._make_log(History(guest), turn=0)
        self._files.create(self._head_file, encode_head(made.head).ljust(2 * PLACE_BYTES), MODE)
        self._files.sync_directory(self._place)
        return made

    def _make_log(self, history: History, turn: int) -> Found:
        """A log with these records, which no head names yet; its content is durable."""
        log = secrets.token_bytes(16)
        lines = [encode_header(Header(history.guest, log))]
        for number, record in enumerate(history.records, 1):
            lines.append(encode_record(record, number, check_of(lines[-1])))
        path = log_path(self._place, log)
        self._files.create(path, b"".join(lines), MODE)
        count, last = len(history.records), check_of(lines[-1])
        return Found(history, tuple(lines), Head(log, turn, count, last, self._files.inode(path)), b"")

    def _begin_anew(self, found: Found) -> None:
        """A log with what still matters, if that is little of it; then the head names that one."""
        kept = essence(found.history)
        if 2 * len(kept.records) > len(found.history.records):
            return
        old = self._log
        made = self._make_log(kept, self._head.turn)
        self._files.reserve(log_path(self._place, made.head.log), sum(map(len, made.lines)), _RESERVE_BYTES)
        self._files.sync(log_path(self._place, made.head.log))
        self._files.sync_directory(self._place)
        self._take(made)
        self._write_head(len(kept.records))
        self._files.remove(old)

    def _mend(self, found: Found) -> None:
        """Make durable what counts, and room for more."""
        # A head that was written and not synced may be in the cache alone; the next one overwrites the other.
        self._files.write(self._head_file, self._head.turn % 2 * PLACE_BYTES, encode_head(self._head))
        self._files.sync(self._head_file)
        if found.beyond or any(found.rest) or len(found.rest) < _RESERVE_BYTES // 2:
            last = b"".join(found.lines[-max(found.beyond, 1) :])
            self._files.truncate(self._log, self._end)  # what was cut off goes away
            self._files.write(self._log, self._end - len(last), last)
            self._files.reserve(self._log, self._end, _RESERVE_BYTES)
            self._files.sync(self._log)
        if found.beyond:
            self._write_head(len(found.history.records))
        for path in found.others:
            self._files.remove(path)

    def _write_head(self, count: int) -> None:
        turn = self._head.turn + 1
        head = Head(self._head.log, turn, count, self._last, self._head.inode)
        self._files.write(self._head_file, turn % 2 * PLACE_BYTES, encode_head(head))
        self._files.sync(self._head_file)
        self._head = head
