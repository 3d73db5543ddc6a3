"""What the demo says to people: figures that were measured, in a table that fits a terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.cli.demo_report import picture, remarks, rows, tell
from sterna.cli.demo_run import DemoRun, Wishes
from sterna.cli.output import Output
from sterna.host.evidence import Evidence

MIB = 1 << 20
ROUNDS = [
    {"round": 1, "bytes": 256 * MIB, "seconds": 1.0, "throttle": 0.0},
    {"round": 2, "bytes": 64 * MIB, "seconds": 0.25, "throttle": 0.4},
    {"round": 3, "bytes": 1, "seconds": 0.001, "throttle": 0.2},
]
WISHES = Wishes(
    memory_bytes=256 * MIB, rate_bytes_s=50 * MIB, hot_bytes=64 * MIB, insecure=False, evidence=None
)
RUN = DemoRun(
    guest="process",
    tracker="userfaultfd",
    hot_bytes=64 * MIB,
    source={
        "outcome": "completed",
        "digest": "22d6e080763569ea8ac616f26f3d8e0f",
        "rounds": ROUNDS,
        "bytes_sent": 321 * MIB,
        "seconds_total": 1.3,
        "seconds_blackout": 0.028,
        "blackout_steps": [
            {"state": "pausing", "seconds": 0.002},
            {"state": "freezing", "seconds": 0.00002},
            {"state": "handed_over", "seconds": 0.026},
        ],
        "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "mutual": True},
    },
    destination={"digest": "22d6e080763569ea8ac616f26f3d8e0f"},
    write_rate_bytes_s=52_100_000,
    dirty_rate_bytes_s=51_000_000,
    blackout_guest_s=0.035,
    writes_before=33472,
    audit={"pages_checked": 65536, "errors": 0, "writes": 46592},
    processes={},
)
ROLLED_BACK = replace(
    RUN,
    source={**RUN.source, "outcome": "rolled_back", "code": "peer_silent", "seconds_blackout": None}
    | {"digest": None, "text": "nothing was heard"},
    destination={},
    audit=None,
    blackout_guest_s=None,
)


def test_what_the_blackout_consists_of() -> None:
    rows_of = {text for _, text in rows(RUN, WISHES)}
    assert "source: pausing 2 ms, handed over 26 ms" in rows_of
    assert not any(text.startswith("destination: ") for text in rows_of)


def test_a_good_run(capsys: pytest.CaptureFixture[str]) -> None:
    tell(RUN, WISHES, Output())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("The guest has moved, whole, and runs on.\n")
    for said in (
        "completed",
        "process, writes followed by userfaultfd",
        "52.1 MB/s, mostly to 64 MiB of 256 MiB",
        "asked for 52.4 MB/s (50MiB/s)",
        "51 MB/s counting each page once a second",
        "TLSv1.3, TLS_AES_256_GCM_SHA384, both sides",
        "321 MiB in 1.3 s",
        "28 ms as the source saw it",
        "35 ms as the guest saw it",
        "22d6e080763569ea8ac616f26f3d8e0f, equal on both sides",
        "65536 pages checked, 0 errors",
        "33472 before, 13120 after",
    ):
        assert said in err


def test_a_downtime_that_was_missed_is_told() -> None:
    assert not any("--downtime" in text for text in remarks(RUN, WISHES))
    (text,) = (text for text in remarks(RUN, replace(WISHES, downtime_s=0.02)) if "--downtime" in text)
    assert text.startswith("The guest stood still for 28 ms, longer than the 20 ms that --downtime allows")
    assert not any("--downtime" in text for text in remarks(ROLLED_BACK, replace(WISHES, downtime_s=0.02)))


def test_it_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    tell(RUN, WISHES, Output())
    found = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    assert max(map(len, found.splitlines())) <= 80
    assert "…" not in found
    assert "equal on both sides" in found  # in one piece


def test_json_has_said_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    tell(RUN, WISHES, Output(json=True))
    assert capsys.readouterr() == ("", "")


def test_what_was_not_reached_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """A migration that ended before its pause had no blackout: not one of no time."""
    tell(ROLLED_BACK, WISHES, Output())
    err = capsys.readouterr().err
    assert "blackout" not in err
    assert "digest" not in err
    assert "audit" not in err
    assert "nothing was heard" in err
    assert err.endswith("This did not go as it should.\n")


def test_pages_that_followed_and_how_long_the_guest_waited() -> None:
    after = {"stale_pages": 900, "demanded_pages": 16, "early_pages": 0, "seconds_until_complete": 0.25}
    run = replace(RUN, source={**RUN.source, "after": after})
    said = dict(rows(run, WISHES))
    assert said["followed"] == "900 pages within 250 ms, 16 of them asked for"
    assert "it waited" not in said
    waited = replace(run, faults={"count": 3, "p50_s": 0.0002, "p99_s": 0.001, "max_s": 0.001})
    assert dict(rows(waited, WISHES))["it waited"] == "3 times for a page, median 200 µs, p99 1 ms"
    cut = replace(RUN, source={**RUN.source, "after": {**after, "seconds_until_complete": None}})
    assert dict(rows(cut, WISHES))["followed"] == "900 pages, 16 of them asked for"
    single = {"stale_pages": 1, "demanded_pages": 1, "early_pages": 0, "seconds_until_complete": 0.25}
    one = replace(
        waited, source={**RUN.source, "after": single}, faults={**(waited.faults or {}), "count": 1}
    )
    assert dict(rows(one, WISHES))["followed"].startswith("1 page within ")
    assert dict(rows(one, WISHES))["it waited"].startswith("once for a page, ")
    early = replace(cut, destination={**RUN.destination, "after": {**after, "early_pages": 7}})
    text = "900 pages within 250 ms, 16 of them asked for, 7 one by one"
    assert dict(rows(early, WISHES))["followed"] == text


def test_a_guest_that_was_to_write_one_page_has_no_rate() -> None:
    run = replace(
        RUN, guest="simulated", tracker="simulated", audit={"pages_checked": 1, "errors": 1, "writes": 1}
    )
    said = dict(rows(run, replace(WISHES, rate_bytes_s=0)))
    assert said["it wrote"] == "one page and then nothing, as asked for"
    assert said["guest"] == "simulated"
    assert said["audit"] == "1 page checked, 1 error"


def test_what_was_looked_at_of_a_virtual_machine() -> None:
    cpu = {"sections": 21, "registers_checked": 900, "mismatches": 0, "time_backwards": 0}
    cpu |= {"time_jump_s": 0.05, "stood_s": 0.06}
    run = replace(RUN, cpu=cpu)
    expected = ("processors", "21 sections of state, 900 registers compared, 0 differ")
    assert expected in rows(run, WISHES)
    assert ("", "while it moved 50 ms have passed for the guest, and 60 ms for the hosts") in rows(
        run, WISHES
    )
    told = [text for _, text in rows(replace(RUN, cpu=cpu | {"time_backwards": 2}), WISHES)]
    assert "the guest has seen its time run backwards, 2 times" in told
    few = cpu | {"sections": 1, "registers_checked": 1, "mismatches": 1}
    expected = ("processors", "1 section of state, 1 register compared, 1 differs")
    assert expected in rows(replace(RUN, cpu=few), WISHES)
    assert "processors" not in dict(rows(RUN, WISHES))


def test_digests_that_differ_are_named() -> None:
    run = replace(RUN, destination={"digest": "00" * 16})
    assert ("memory digest", f"{RUN.source['digest']}, NOT equal on both sides") in rows(run, WISHES)


def test_an_idle_guest_cannot_tell_a_pause() -> None:
    said = rows(RUN, replace(WISHES, rate_bytes_s=0))
    assert not any("as the guest saw it" in text for _, text in said)


def test_pages_that_were_not_verified_are_called_so() -> None:
    """[MEM-21]"""
    run = replace(RUN, source={**RUN.source, "verified": False})
    told = [text for _, text in rows(run, WISHES) if "--unverified" in text]
    assert told == ["of pages without hashes: it does not tell what is in them (--unverified)"]
    assert run.fields(WISHES)["verified"] is False
    assert RUN.fields(WISHES)["verified"] is True


def test_plaintext_is_called_so() -> None:
    run = replace(RUN, source={**RUN.source, "tls": None})
    assert ("TLS", "none (--insecure)") in rows(run, WISHES)


def test_the_picture_is_to_scale() -> None:
    found = picture(ROUNDS, paused=True)
    assert [name for name, _, _ in found] == ["round 1", "round 2", "blackout"]
    assert [len(bar) for _, bar, _ in found] == [40, 10, 1]  # what was sent at all is seen
    assert found[1][2] == "64 MiB in 250 ms"
    assert [name for name, _, _ in picture(ROUNDS, paused=False)] == ["round 1", "round 2", "round 3"]


def test_a_picture_of_nothing() -> None:
    assert picture([], paused=False) == []
    assert picture([{"round": 1, "bytes": 0, "seconds": 0.0}], paused=True) == [
        ("blackout", "", "0 B in 0 µs")
    ]
    assert picture([{}], paused=False) == [("round None", "", "0 B in 0 µs")]


def test_remarks(tmp_path: Path) -> None:
    wishes = replace(WISHES, evidence=Evidence(tmp_path))
    for name in ("source.img", "destination.img", "source-1.img", "destination-1.img"):
        (tmp_path / name).touch()
    run = replace(RUN, failures=("a.rec: No space left on device",))
    assert remarks(run, wishes) == [
        "a.rec: No space left on device",
        (
            "The guest wrote faster than its pages could be sent, and was slowed down by up to "
            "40 % until it could be caught up with."
        ),
        (
            f"Compare the images yourself: cmp {tmp_path}/source.img {tmp_path}/destination.img; "
            f"cmp {tmp_path}/source-1.img {tmp_path}/destination-1.img"
        ),
    ]
    assert remarks(replace(RUN, source={"rounds": "nonsense"}), WISHES) == []


@pytest.mark.parametrize(
    ("unwritten", "remark"),
    [
        (
            ("source.img",),
            "{rest}cmp {0}/source-2.img {0}/destination-2.img",
        ),
        (
            ("source-2.img", "destination-2.img"),
            "{rest}cmp {0}/source.img {0}/destination.img",
        ),
        (
            ("source.img", "destination-2.img"),
            "There are no two images to compare: not all of them could be written.",
        ),
    ],
)
@pytest.mark.parametrize("in_part", [True, False])
def test_images_that_could_not_be_written(
    tmp_path: Path, unwritten: tuple[str, ...], remark: str, *, in_part: bool
) -> None:
    """As where the disk is full: nobody is told to compare them, nor that these are all."""
    for name in ("source.img", "destination.img", "source-2.img", "destination-2.img"):
        if in_part or name not in unwritten:
            (tmp_path / name).touch()
    rest = "Not all of the images could be written. Compare those that are there yourself: "
    failures = tuple(f"{tmp_path / name}: No space left on device" for name in unwritten)
    run = replace(RUN, failures=failures, source={**RUN.source, "rounds": []})
    found = remarks(run, replace(WISHES, evidence=Evidence(tmp_path)))
    assert found == [*failures, remark.format(tmp_path, rest=rest)]


def test_images_of_a_run_that_failed_are_not_offered_for_comparison(tmp_path: Path) -> None:
    found = remarks(ROLLED_BACK, replace(WISHES, evidence=Evidence(tmp_path)))
    assert not any("cmp" in text for text in found)
