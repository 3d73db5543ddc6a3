"""A judge of a migration's evidence. It imports nothing of what it judges.

    python judge.py DIRECTORY            source.img, destination.img and journal.ndjson in DIRECTORY, and
                                         source-N.img and destination-N.img of each further region of memory
    python judge.py --journal FILE...    journals alone

Two questions: is the destination's memory at its first instruction, byte for byte, the source's at the pause?
And was there one runner at every moment? The second is read off the guest's journal (spec/holder.md,
section 7), to which both holders appended lines ``[count, epoch, runner, ns, event]``:

- `run`, `resume` and `beat` are written after writes of the guest: their count is above every earlier one's.
  `pause`, `granted`, `revoked` and `end` are written while nothing runs: their count is that of the line
  before, or above it, and if it is the same then so are epoch and runner.
- An epoch never falls, and belongs to one runner.
- What was stopped goes on with `run` or `resume`; what was granted goes on in a higher epoch, or in its own
  one after the grant was `revoked`.

Everything else is a fork: two sides have run the guest, or one has run what was not its any more.
Exit code 0: nothing found. 1: it has said what.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RUNNING = {"run", "resume", "beat"}
STOPPED = {"pause", "granted", "revoked", "end"}
SIDES = ("source", "destination")
STEP_BYTES = 1 << 20


def images_differ(source: Path, destination: Path) -> str | None:
    """In what the two images differ, None if they are the same."""
    if source.stat().st_size != destination.stat().st_size:
        return f"sizes differ: {source.stat().st_size} and {destination.stat().st_size} bytes"
    if not source.stat().st_size:
        return "both images are empty"
    offset = 0
    with source.open("rb") as first, destination.open("rb") as second:
        while True:
            one, other = first.read(STEP_BYTES), second.read(STEP_BYTES)
            if one != other:
                at = next(
                    index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]
                )
                return f"first difference at byte {offset + at}, page {(offset + at) // 4096}"
            if not one:
                return None
            offset += len(one)


def read_line(text: str) -> tuple[int, int, str, str]:
    """Count, epoch, runner and event of a line of the journal.

    Raises:
        ValueError: it is none.
    """
    fields = json.loads(text)
    match fields:
        case [int(count), int(epoch), str(runner), int(), str(event)] if event in RUNNING | STOPPED:
            return count, epoch, runner, event
    raise ValueError("not a line of a journal")


def faults_of(lines: list[str]) -> list[str]:
    """Everything in a journal that cannot be if one side at a time has run the guest."""
    faults = []
    if not lines:
        faults.append("the journal is empty")
    runners: dict[int, str] = {}
    before = (-1, 0, "", "")
    for number, text in enumerate(lines, 1):
        try:
            line = read_line(text)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        owner = runners.setdefault(line[1], line[2])
        if owner != line[2]:
            faults.append(f"line {number}: epoch {line[1]} belongs to {owner}, and to {line[2]}")
        faults += [f"line {number}: {text}" for text in _compare(before, line)]
        # The highest so far is what later lines are held against, or one fork would hide the next.
        before = line if line[0] >= before[0] else before
    return faults


def _compare(before: tuple[int, int, str, str], line: tuple[int, int, str, str]) -> list[str]:
    count, epoch, runner, event = line
    count_before, epoch_before, runner_before, event_before = before
    faults = []
    if epoch < epoch_before:
        faults.append(f"epoch {epoch} after {epoch_before}")
    if count < count_before or (count == count_before and event in RUNNING):
        faults.append(f"{event} at {count} writes, after {event_before} at {count_before}")
    if count == count_before and (epoch, runner) != (epoch_before, runner_before):
        faults.append(f"{event} at {count} writes by {runner}, where {runner_before} has stopped")
    if event_before in STOPPED and event == "beat":
        faults.append(f"it goes on after {event_before} without a word")
    if event_before == "granted" and event != "revoked" and epoch <= epoch_before:
        faults.append(f"{event} in epoch {epoch}, which was over when the next one was granted")
    return faults


def judge(directory: Path) -> list[str]:
    """Everything that is wrong with a directory of evidence."""
    found = []
    parts = {path.name.removeprefix(side) for side in SIDES for path in directory.glob(f"{side}-*.img")}
    for part in (".img", *sorted(parts)):
        source, destination = (directory / (side + part) for side in SIDES)
        difference = images_differ(source, destination)
        if difference is not None:
            found.append(f"images: {difference}")
    return found + judge_journal(directory / "journal.ndjson")


def judge_journal(path: Path) -> list[str]:
    """Everything that is wrong with a journal."""
    return [f"{path.name}: {fault}" for fault in faults_of(path.read_text().splitlines())]


def main(arguments: list[str]) -> int:
    """Judge what the command line names."""
    try:
        if arguments[:1] == ["--journal"] and arguments[1:]:
            found = [fault for name in arguments[1:] for fault in judge_journal(Path(name))]
        elif len(arguments) == 1:
            found = judge(Path(arguments[0]))
        else:
            found = ["usage: judge.py DIRECTORY, or judge.py --journal FILE..."]
    except OSError as error:
        found = [f"{error.filename}: {error.strerror}"]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
