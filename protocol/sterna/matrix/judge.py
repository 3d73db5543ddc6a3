"""A judge of what a cell has left behind. It imports nothing of what it judges.

    python judge.py DIRECTORY

reads in DIRECTORY `journal.ndjson`, to which the holders of both hosts have appended (spec/holder.md, section
7), and `after.json`, what was seen of them when everybody had come to an end:

    {"source": HOLDER, "destination": HOLDER}, where HOLDER is null, for one that is gone, or
    {"state": STATE, "runner": "HOST:ID", "writes": [FIRST, LAST], "lines": LINES, "vcpus": VCPUS,
     "audit": AUDIT or null}

with the guest's count of writes before and after a while, and the audit of its memory that followed when the
journal had so many lines. An audit stops the processors of a virtual machine between any two instructions, so
each of its VCPUS may have written a page and not counted it yet; they are 0 for other guests. It says one
JSON object: `runs` (source, destination, both, or nobody), `two_runners` and `lost_writes`, lists of what
shows that, empty if nothing does.

Of a journal ``[count, epoch, runner, ns, event]`` a line each:

- `run`, `resume` and `beat` are written after writes of the guest: their count is above every earlier one's.
  `pause`, `granted`, `revoked` and `end` are written while nothing runs: their count is that of the line
  before, or above it, and if it is the same then so are epoch and runner.
- An epoch never falls, and belongs to one runner.
- What was stopped goes on with `run` or `resume`; what was granted goes on in a higher epoch, or in its own
  one after the grant was `revoked`.

Everything else is a fork: two sides have run the guest, or one has run what was not its any more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

RUNNING = {"run", "resume", "beat"}
STOPPED = {"pause", "granted", "revoked", "end"}
SIDES = ("source", "destination")

Entry = tuple[int, int, str, str]


def read_line(text: str) -> Entry:
    """Count, epoch, runner and event of a line of the journal.

    Raises:
        ValueError: it is none.
    """
    match json.loads(text):
        case [int(count), int(epoch), str(runner), int(), str(event)] if event in RUNNING | STOPPED:
            return count, epoch, runner, event
    raise ValueError("not a line of a journal")


def entries_of(lines: Sequence[str]) -> tuple[list[tuple[int, Entry]], list[str]]:
    """What a journal says, with line numbers, and what of it nobody can read.

    A holder that was killed may have left the beginning of a line; whoever wrote next has ended it.
    """
    entries, unread = [], []
    for number, text in enumerate(lines, 1):
        try:
            entries.append((number, read_line(text)))
        except ValueError:
            unread.append(f"line {number} is no line of a journal: {text!r}")
    return entries, unread


def forks(entries: Sequence[tuple[int, Entry]]) -> Iterator[str]:
    """Everything in a journal that cannot be if one side at a time has run the guest."""
    runners: dict[int, str] = {}
    before: Entry = (-1, 0, "", "")
    for number, entry in entries:
        count, epoch, runner, event = entry
        owner = runners.setdefault(epoch, runner)
        if owner != runner:
            yield f"line {number}: epoch {epoch} belongs to {owner}, and to {runner}"
        for fault in _compare(before, entry):
            yield f"line {number}: {event} at {count}: {fault}"
        # The highest so far is what later lines are held against, or one fork would hide the next.
        before = entry if count >= before[0] else before


def _compare(before: Entry, entry: Entry) -> Iterator[str]:
    count, epoch, runner, event = entry
    count_before, epoch_before, runner_before, event_before = before
    if epoch < epoch_before:
        yield f"epoch {epoch} after {epoch_before}"
    if count < count_before or (count == count_before and event in RUNNING):
        yield f"it comes after {event_before} at {count_before}"
    if count == count_before and (epoch, runner) != (epoch_before, runner_before):
        yield f"by {runner}, where {runner_before} has stopped"
    if event_before in STOPPED and event == "beat":
        yield f"it goes on after {event_before} without a word"
    if event_before == "granted" and event != "revoked" and epoch <= epoch_before:
        yield f"in epoch {epoch}, which was over when the next one was granted"


def judge(lines: Sequence[str], after: dict[str, dict[str, object] | None]) -> dict[str, object]:
    """The verdict on a journal, and on what was seen afterwards."""
    entries, unread = entries_of(lines)
    two = list(forks(entries))
    going = [side for side in SIDES if _goes(after.get(side))]
    if len(going) > 1:
        two.append("the guest runs at both sides")
    lost = [f"the journal is empty: {unread}"] if not entries else []
    for side in going:
        lost += [f"{side}: {what}" for what in _missing(after[side] or {}, entries)]
    runs = "both" if len(going) > 1 else (going or ["nobody"])[0]
    return {"runs": runs, "two_runners": two, "lost_writes": lost}


def _goes(holder: dict[str, object] | None) -> bool:
    """Whether a guest runs: not because somebody says so, but because it has written meanwhile."""
    match holder:
        case {"writes": [int(first), int(last)]}:
            return last > first
    return False


def _missing(holder: dict[str, object], entries: Sequence[tuple[int, Entry]]) -> Iterator[str]:
    """What of the guest's writes is not in its memory any more.

    The guest numbers its writes and checks each page against its number before it writes it again; an audit
    checks all of them. A guest that was set back to an older image counts less than its journal knows.
    """
    lines = holder.get("lines")
    newest = max(
        (entry[0] for number, entry in entries if isinstance(lines, int) and number <= lines), default=0
    )
    match holder.get("audit"):
        case {
            "pages_checked": int(pages),
            "errors": int(errors),
            "errors_while_running": int(met),
            "writes": int(writes),
            "generations": int(generations),
            "registers_good": bool(good),
        }:
            if not pages:
                yield "no page was audited"
            if errors or met or not good:
                yield f"{errors} bad pages, {met} met while running, registers good: {good}"
            if (generations - writes) % (1 << 64) > _vcpus(holder):
                yield f"its pages were written {generations} times, and {writes} are counted"
            if writes < newest:
                yield f"{writes} writes, where the journal knows of {newest}"
        case _:
            yield "there was no audit"


def _vcpus(holder: dict[str, object]) -> int:
    """How many writes may be under way."""
    match holder.get("vcpus"):
        case int(number):
            return number
    return 0


def main(arguments: Sequence[str]) -> int:
    """Judge a directory."""
    directory = Path(*arguments)
    lines = (directory / "journal.ndjson").read_text().splitlines()
    print(json.dumps(judge(lines, json.loads((directory / "after.json").read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
