"""Judge what `sterna demo --json --evidence DIR` says about itself. Imports nothing of Sterna.

    python3 judge_demo.py SUMMARY.json EVIDENCE-DIRECTORY

Prints what was checked; exits 1 with every complaint if anything does not hold.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

RUNNING = {"run", "resume", "beat"}
BLACKOUT_MAX_S = 2.0


class Judge:
    """Collects complaints, so that one run shows them all."""

    def __init__(self) -> None:
        self.checks = 0
        self.complaints: list[str] = []

    def check(self, holds: bool, complaint: str) -> None:
        """Count a check, and note what to say if it does not hold."""
        self.checks += 1
        if not holds:
            self.complaints.append(complaint)


def number(value: object) -> float:
    """A finite number, or -1 for anything else; true is no number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else -1.0  # type: ignore[arg-type]


def judge_summary(judge: Judge, said: dict[str, Any]) -> None:
    """The one object on stdout."""
    judge.check(said.get("schema") == 1, "schema is not 1")
    judge.check(said.get("outcome") == "completed", f"outcome is {said.get('outcome')!r}")
    for name in ("guest", "tracker"):
        judge.check(bool(said.get(name)) and isinstance(said[name], str), f"{name} is not named")
    tls = said.get("tls") or {}
    judge.check(tls.get("version") == "TLSv1.3", f"TLS version is {tls.get('version')!r}")
    judge.check(bool(tls.get("cipher")), "no TLS cipher is named")
    judge.check(tls.get("mutual") is True, "TLS was not mutual")
    for name in (
        "memory_bytes", "dirty_rate_requested", "dirty_rate_achieved", "hot_set_bytes", "bytes_sent",
        "seconds_total", "seconds_blackout", "seconds_blackout_guest",
    ):  # fmt: skip
        judge.check(number(said.get(name)) > 0, f"{name} is {said.get(name)!r}")
    blackout = max(number(said.get("seconds_blackout")), number(said.get("seconds_blackout_guest")))
    judge.check(blackout < BLACKOUT_MAX_S, f"the guest stood still for {blackout} s")
    judge.check(blackout < number(said.get("seconds_total")), "the blackout is longer than the migration")

    rounds = said.get("rounds") or []
    judge.check(len(rounds) > 0, "no rounds")
    numbers = [one.get("round") for one in rounds]
    judge.check(numbers == sorted(set(numbers)), f"the rounds are numbered {numbers}")
    for one in rounds:
        for name in ("pages", "bytes", "seconds", "dirty_pages"):
            judge.check(number(one.get(name)) >= 0, f"round {one.get('round')}: {name} is {one.get(name)!r}")
    carried = sum(number(one.get("bytes")) for one in rounds)
    judge.check(carried > 0, "the rounds carried nothing")

    digest = said.get("digest") or {}
    judge.check(digest.get("equal") is True, "the digests are not said to be equal")
    judge.check(bool(digest.get("source")), "no digest")
    judge.check(digest.get("source") == digest.get("destination"), "the digests differ")
    audit = said.get("audit") or {}
    judge.check(audit.get("errors") == 0, f"the audit found {audit.get('errors')!r} errors")
    pages = number(said.get("memory_bytes")) / 4096
    judge.check(
        number(audit.get("pages_checked")) >= pages, f"only {audit.get('pages_checked')!r} pages were audited"
    )
    for name in ("writes_before", "writes_after"):
        judge.check(number(audit.get(name)) > 0, f"audit: {name} is {audit.get(name)!r}")
    names = ("source", "destination", "source_holder", "destination_holder")
    processes = [(said.get("processes") or {}).get(name) for name in names]
    judge.check(all(number(pid) > 1 for pid in processes), f"processes are {processes}")
    judge.check(len(set(processes)) == len(names), f"not four different processes: {processes}")


def judge_images(judge: Judge, said: dict[str, Any], evidence: Path) -> None:
    """The source's image at the pause and the destination's at its first instruction."""
    judge_pair(
        judge, [evidence / "source.img", evidence / "destination.img"], number(said.get("memory_bytes"))
    )
    # What else the guest has: a virtual machine's program is in a region of its own.
    for source in evidence.glob("source-*.img"):
        judge_pair(judge, [source, evidence / source.name.replace("source", "destination")])


def judge_pair(judge: Judge, paths: list[Path], size_bytes: float | None = None) -> None:
    """Two files with the same of a guest's memory."""
    for path in paths:
        judge.check(path.is_file(), f"{path.name} is missing")
    if not all(path.is_file() for path in paths):
        return
    for path in paths:
        judge.check(path.stat().st_mode & 0o077 == 0, f"{path.name}, guest memory, is readable by others")
        size = path.stat().st_size
        judge.check(size_bytes in {None, size}, f"{path.name} has {size} bytes")
    with paths[0].open("rb") as source, paths[1].open("rb") as destination:
        offset, equal, zero = 0, True, True
        while equal and (piece := source.read(1 << 20)):
            equal = piece == destination.read(1 << 20)
            zero = zero and piece.count(0) == len(piece)
            offset += len(piece)
        name = paths[0].name
        judge.check(
            equal and not destination.read(1),
            f"{name}: the images differ within the MiB before byte {offset}",
        )
        judge.check(not zero, f"{name} is all zeros")


def judge_journal(judge: Judge, evidence: Path) -> None:
    """One guest, never two: counts rise, epochs do not fall, an epoch has one runner."""
    files = [path for path in evidence.iterdir() if path.name.startswith("journal")]
    judge.check(len(files) == 1, f"one journal was expected, not {[path.name for path in files]}")
    if len(files) != 1:
        return
    last, epochs, runners = -1, [], {}
    for line in files[0].read_text().splitlines():
        count, epoch, runner, _, event = json.loads(line)
        if event in RUNNING:
            judge.check(count > last, f"the count goes from {last} to {count}: a fork")
            epochs.append(epoch)
        else:
            judge.check(count >= last, f"the count goes back from {last} to {count}")
        last = count
        judge.check(runners.setdefault(epoch, runner) == runner, f"epoch {epoch} has two runners")
    judge.check(epochs == sorted(epochs), "the epoch goes back")
    judge.check(len(set(epochs)) == 2, f"the guest ran under the epochs {sorted(set(epochs))}, not under two")


def main(arguments: list[str]) -> int:
    """Exit code of the judgement."""
    summary, evidence = Path(arguments[0]), Path(arguments[1])
    judge = Judge()
    said = json.loads(summary.read_text())
    judge_summary(judge, said)
    judge_images(judge, said, evidence)
    judge_journal(judge, evidence)
    for complaint in judge.complaints:
        print(f"judge: {complaint}", file=sys.stderr)
    print(f"judge: {judge.checks} checks, {len(judge.complaints)} complaints")
    return 1 if judge.complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
