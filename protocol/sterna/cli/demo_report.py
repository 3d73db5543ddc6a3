"""What the demo says at its end, to people: a table, and a picture of the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sterna.cli.demo_run import DemoRun, Wishes
from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import format_rate
from sterna.core.words import count_text, duration_text, rate_text, share_text, size_text, times_text
from sterna.host.evidence import DESTINATION_IMAGE, SOURCE_IMAGE, Evidence

_BAR_CELLS: Final = 40
_TOLD_S: Final = 0.0001


def tell(run: DemoRun, wishes: Wishes, output: Output) -> None:
    """Everything worth knowing about a run; nothing with --json, where the object has said it."""
    if output.json:
        return
    rounds = _rounds(run)
    if rounds:
        output.table(("", "sent", ""), picture(rounds, paused=_has_blackout(run)))
    output.table(("", "measured"), rows(run, wishes))
    for text in remarks(run, wishes):
        output.say(text)
    good = run.exit_code is Exit.OK
    verdict = "The guest has moved, whole, and runs on." if good else "This did not go as it should."
    output.say(verdict, style="green" if good else "red")


def picture(rounds: list[Mapping[str, object]], *, paused: bool) -> list[tuple[str, str, str]]:
    """A bar a round, as long as its bytes; the last one is the blackout's if the guest was `paused`."""
    most = max((_number(one, "bytes") for one in rounds), default=0.0) or 1.0
    found = []
    for index, one in enumerate(rounds):
        sent = _number(one, "bytes")
        cells = max(1, round(sent / most * _BAR_CELLS)) if sent else 0
        last = paused and index == len(rounds) - 1
        name = "blackout" if last else f"round {one.get('round')}"
        text = f"{size_text(sent)} in {duration_text(_number(one, 'seconds'))}"
        found.append((name, ("▓" if last else "█") * cells, text))
    return found


def rows(run: DemoRun, wishes: Wishes) -> list[tuple[str, str]]:
    """The summary, as pairs of a name and what it is."""
    tls = run.source.get("tls")
    secured = (
        f"{tls['version']}, {tls['cipher']}, both sides" if isinstance(tls, dict) else "none (--insecure)"
    )
    source, _ = run.digests
    hot = f"mostly to {size_text(run.hot_bytes)} of {size_text(wishes.memory_bytes)}"
    asked = f"asked for {rate_text(wishes.rate_bytes_s)} ({format_rate(wishes.rate_bytes_s)})"
    distinct = f"{rate_text(run.dirty_rate_bytes_s)} counting each page once a second"
    followed = "" if run.tracker == run.guest else f", writes followed by {run.tracker}"
    found = [
        ("outcome", run.outcome),
        ("guest", f"{run.guest}{followed}"),
    ]
    if wishes.rate_bytes_s:
        wrote = f"{rate_text(run.write_rate_bytes_s)}, {hot}"
        found += [("it wrote", wrote), ("", asked), ("", distinct)]
    else:
        found.append(("it wrote", "one page and then nothing, as asked for"))
    found += [
        ("TLS", secured),
        (
            "sent",
            f"{size_text(_number(run.source, 'bytes_sent'))} in {_seconds(run.source, 'seconds_total')}",
        ),
    ]
    if _has_blackout(run):
        found.append(("blackout", f"{_seconds(run.source, 'seconds_blackout')} as the source saw it"))
        found += [
            ("", f"{side}: {steps}") for side in ("source", "destination") if (steps := _steps(run, side))
        ]
    if run.blackout_guest_s is not None and wishes.writes_enough:
        found.append(("", f"{duration_text(run.blackout_guest_s)} as the guest saw it, from write to write"))
    found += _followed(run)
    if source is not None:
        found.append(("memory digest", f"{source}, {'equal' if run.equal else 'NOT equal'} on both sides"))
        if not run.verified:
            found.append(("", "of pages without hashes: it does not tell what is in them (--unverified)"))
    if run.audit is not None:
        checked = (
            f"{count_text(run.audit['pages_checked'], 'page')} checked, {count_text(run.errors, 'error')}"
        )
        found.append(("audit", checked))
        if run.cpu is not None:
            found += _processors(run.cpu)
        found.append(("pages written", f"{run.writes_before} before, {run.writes_after} after"))
    return found


def _processors(cpu: Mapping[str, float]) -> list[tuple[str, str]]:
    """What was looked at of a virtual machine's processors."""
    sections = count_text(int(cpu["sections"]), "section")
    differ = int(cpu["mismatches"])
    compared = f"{count_text(int(cpu['registers_checked']), 'register')} compared, {differ} "
    compared += "differs" if differ == 1 else "differ"
    jump, stood = duration_text(cpu["time_jump_s"]), duration_text(cpu["stood_s"])
    found = [
        ("processors", f"{sections} of state, {compared}"),
        ("", f"while it moved {jump} have passed for the guest, and {stood} for the hosts"),
    ]
    if cpu["time_backwards"]:
        times = times_text(int(cpu["time_backwards"]))
        found.append(("", f"the guest has seen its time run backwards, {times}"))
    return found


def _steps(run: DemoRun, side: str) -> str:
    """What the blackout consists of, at one side; what takes no time worth telling is left out."""
    steps = (run.source if side == "source" else run.destination).get("blackout_steps")
    if not isinstance(steps, list):
        return ""
    long = [each for each in steps if _number(each, "seconds") >= _TOLD_S]
    return ", ".join(f"{each['state'].replace('_', ' ')} {_seconds(each, 'seconds')}" for each in long)


def _followed(run: DemoRun) -> list[tuple[str, str]]:
    """The pages that followed the guest, if any had to."""
    after = run.after
    if not isinstance(after, dict):
        return []
    text = count_text(after["stale_pages"], "page")
    if after["seconds_until_complete"] is not None:
        text += f" within {_seconds(after, 'seconds_until_complete')}"
    text += f", {after['demanded_pages']} of them asked for"
    if after["early_pages"]:
        text += f", {after['early_pages']} one by one"
    rows = [("followed", text)]
    if run.faults is not None:
        half, most = duration_text(run.faults["p50_s"]), duration_text(run.faults["p99_s"])
        times = times_text(int(run.faults["count"]))
        rows.append(("it waited", f"{times} for a page, median {half}, p99 {most}"))
    return rows


def remarks(run: DemoRun, wishes: Wishes) -> list[str]:
    """What a reader of the figures should know."""
    found = list(run.failures)
    throttle = max((_number(one, "throttle") for one in _rounds(run)), default=0.0)
    if throttle:
        found.append(
            "The guest wrote faster than its pages could be sent, and was slowed down by up to "
            f"{share_text(throttle)} until it could be caught up with."
        )
    if run.met_downtime(wishes) is False:
        stood = _seconds(run.source, "seconds_blackout")
        found.append(
            f"The guest stood still for {stood}, longer than the {duration_text(wishes.downtime_s)} that "
            "--downtime allows: what is allowed decides when it is paused, and is compared with a forecast."
        )
    if wishes.evidence is not None and run.equal:
        found += _comparison(wishes.evidence, run.failures)
    if text := run.source.get("text"):
        found.append(str(text))
    return found


def _comparison(evidence: Evidence, failures: Sequence[str]) -> list[str]:
    """How to compare the images, and whether all of them are there: the disk may have been full."""
    unwritten = {Path(each.rpartition(": ")[0]).name for each in failures}  # or in part
    stems = [name.removesuffix(".img") for name in (SOURCE_IMAGE, DESTINATION_IMAGE)]
    source, destination = (
        {path.name.removeprefix(stem): path for path in evidence.image(f"{stem}.img")} for stem in stems
    )
    whole = [
        end
        for end in source
        if end in destination and not unwritten & {source[end].name, destination[end].name}
    ]
    pairs = "; ".join(f"cmp {source[end]} {destination[end]}" for end in whole)
    if not any(name.startswith(tuple(stems)) and name.endswith(".img") for name in unwritten):
        return [f"Compare the images yourself: {pairs}"] if pairs else []
    if not pairs:
        return ["There are no two images to compare: not all of them could be written."]
    return [f"Not all of the images could be written. Compare those that are there yourself: {pairs}"]


def _has_blackout(run: DemoRun) -> bool:
    return run.source.get("seconds_blackout") is not None


def _rounds(run: DemoRun) -> list[Mapping[str, object]]:
    rounds = run.source.get("rounds")
    return rounds if isinstance(rounds, list) else []


def _number(fields: Mapping[str, object], name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _seconds(fields: Mapping[str, object], name: str) -> str:
    return duration_text(_number(fields, name))
