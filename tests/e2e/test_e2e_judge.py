"""The judge knows nothing of Sterna, takes good evidence for good, and sees every forgery."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import judge
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge import faults_of, images_differ

A, B = "host-a:" + "0a" * 16, "host-b:" + "0b" * 16
GOOD = [
    (1, 1, A, "run"),
    (90, 1, A, "beat"),
    (120, 1, A, "pause"),
    (121, 1, A, "resume"),
    (150, 1, A, "beat"),
    (160, 1, A, "pause"),
    (160, 1, A, "granted"),
    (161, 2, B, "run"),
    (190, 2, B, "beat"),
    (200, 2, B, "end"),
]


def journal(*lines: tuple[int, int, str, str]) -> list[str]:
    return [json.dumps([count, epoch, runner, 1000, event]) for count, epoch, runner, event in lines]


def test_the_judge_imports_nothing_of_what_it_judges() -> None:
    tree = ast.parse(Path(judge.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_a_good_journal() -> None:
    assert faults_of(journal(*GOOD)) == []


def test_a_grant_that_was_taken_back() -> None:
    lines = [*GOOD[:7], (160, 1, A, "revoked"), (161, 1, A, "resume"), (170, 1, A, "beat")]
    assert faults_of(journal(*lines)) == []


def test_a_guest_that_was_won_back() -> None:
    """Undecided, and then resolved: it goes on in an epoch above the granted one."""
    assert faults_of(journal(*GOOD[:7], (161, 3, A, "run"))) == []


FORGERIES = {
    "a count twice, while it runs": [*GOOD[:5], (150, 1, A, "beat")],
    "a count that falls": [*GOOD[:5], (149, 1, A, "beat")],
    "a resume without a write": [*GOOD[:3], (120, 1, A, "resume")],
    "a pause before what was written": [*GOOD[:5], (140, 1, A, "pause")],
    "an epoch that falls": [*GOOD, (300, 1, A, "run")],
    "an epoch with two runners": [*GOOD[:2], (95, 1, B, "beat")],
    "an epoch with another runner, while nothing runs": [*GOOD[:6], (160, 1, B, "granted")],
    "another runner at the same count": [*GOOD[:7], (160, 2, B, "run")],
    "it runs on after it was granted": [*GOOD[:7], (161, 1, A, "beat")],
    "it is resumed after it was granted": [*GOOD[:7], (161, 1, A, "resume")],
    "both run": [*GOOD[:9], (170, 1, A, "beat"), (210, 2, B, "beat")],
    "it goes on after a pause without a word": [*GOOD[:3], (130, 1, A, "beat")],
    "nothing at all": [],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_journal(name: str) -> None:
    assert faults_of(journal(*FORGERIES[name]))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1, 2]", '[1, 1, "a", 2, "dance"]', '["1", 1, "a", 2, "run"]', '[1,1,"a",2,"ru']
)
def test_a_line_that_is_none(text: str) -> None:
    assert faults_of([*journal(GOOD[0]), text])


@given(st.data())
def test_two_sides_that_run_are_always_seen(data: st.DataObject) -> None:
    """From one pause on both go their way; the journal has their lines in any order that keeps each one's."""
    counts = st.lists(st.integers(161, 400), min_size=1, max_size=6, unique=True).map(sorted)
    here = [
        (count, 1, A, "resume" if index == 0 else "beat") for index, count in enumerate(data.draw(counts))
    ]
    there = [(count, 2, B, "run" if index == 0 else "beat") for index, count in enumerate(data.draw(counts))]
    lines = list(GOOD[:7])
    while here or there:
        side = here if here and (not there or data.draw(st.booleans())) else there
        lines.append(side.pop(0))
    assert faults_of(journal(*lines))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 19))
def test_one_side_after_the_other_is_never_a_fork(steps: list[int], moved_at: int) -> None:
    lines, count = [], 0
    for index, step in enumerate(steps):
        epoch, runner = (1, A) if index < moved_at else (2, B)
        if index == moved_at:
            lines += [(count, 1, A, "pause"), (count, 1, A, "granted")]
        count += step
        lines.append((count, epoch, runner, "run" if index in {0, moved_at} else "beat"))
    assert faults_of(journal(*lines)) == []


def test_images(tmp_path: Path) -> None:
    one, other = tmp_path / "source.img", tmp_path / "destination.img"
    content = bytes(range(256)) * 8192  # more than one step
    one.write_bytes(content)
    other.write_bytes(content)
    assert images_differ(one, other) is None
    other.write_bytes(content[:1_500_000] + b"\xff" + content[1_500_001:])
    assert "byte 1500000, page 366" in (images_differ(one, other) or "")
    other.write_bytes(content[:-1])
    assert "sizes differ" in (images_differ(one, other) or "")
    one.write_bytes(b"")
    other.write_bytes(b"")
    assert images_differ(one, other) is not None


def test_the_program(tmp_path: Path) -> None:
    """As anybody runs it: no packages, nothing of the environment."""

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", judge.__file__, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert not done.stderr
        return done.returncode, done.stdout

    for name in ("source.img", "destination.img"):
        (tmp_path / name).write_bytes(b"the same" * 512)
    file = tmp_path / "journal.ndjson"
    file.write_text("\n".join(journal(*GOOD)))
    assert run(tmp_path) == (0, "")
    assert run("--journal", file) == (0, "")
    file.write_text("\n".join(journal(*FORGERIES["both run"])))
    (tmp_path / "destination.img").write_bytes(b"different"[:8] * 512)
    code, said = run(tmp_path)
    assert code == 1
    assert "images: first difference at byte 0" in said
    assert "journal.ndjson: line 10" in said
    assert run(tmp_path / "nowhere")[0] == 1
    assert run()[0] == 1
