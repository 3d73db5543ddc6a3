from __future__ import annotations

import re

import pytest
from cyclopts import App
from hypothesis import given
from hypothesis import strategies as st

from sterna.cli.units import (
    SIZE_MAX,
    Duration,
    Json,
    Rate,
    Size,
    format_duration,
    format_rate,
    format_size,
    format_streams,
    parse_cap,
    parse_downtime,
    parse_duration,
    parse_rate,
    parse_size,
    parse_streams,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0B", 0),
        ("512B", 512),
        ("256MiB", 256 << 20),
        ("1.5GiB", 3 << 29),
        ("4kB", 4000),
        ("1TB", 10**12),
        ("1024TiB", 1 << 50),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write for example 256MiB"),
        ("256", "has no unit: write for example 256MiB"),
        ("256 MiB", "write for example 256MiB"),
        ("-1MiB", "write for example 256MiB"),
        ("1e3MiB", "write for example 256MiB"),
        ("٢MiB", "write for example 256MiB"),
        ("256mib", "did you mean 256MiB?"),
        ("256KB", "did you mean 256kB?"),
        ("256Mbit", "the units are B, kB"),
        ("0.3B", "not a whole number of bytes"),
        ("2000000TiB", "is more than 1048576TiB"),
        ("9" * 400 + "MiB", "write for example 256MiB"),
        ("nanMiB", "write for example 256MiB"),
    ],
)
def test_a_bad_size_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


def test_rates() -> None:
    assert parse_rate("50MiB/s") == 50 << 20
    for text in ("50MiB", "50MiB/", "50MiB/m", "50MiB/s/s", "/s"):
        with pytest.raises(ValueError, match="write for example"):
            parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("300ms", 0.3), ("1.5s", 1.5), ("2min", 120), ("85us", 85e-6), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("300", "has no unit"), ("300m", "the units are us, ms, s, min"), ("2000min", "more than a day")],
)
def test_a_bad_duration_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_duration(text)


def test_what_no_migration_can_do_with_is_said_at_once() -> None:
    assert (parse_cap("64KiB/s"), parse_downtime("1ms"), parse_downtime("60min")) == (65536, 0.001, 3600)
    with pytest.raises(ValueError, match="64KiB/s is the least"):
        parse_cap("65535B/s")
    for text in ("999us", "61min"):
        with pytest.raises(ValueError, match="from 1ms to 60min"):
            parse_downtime(text)


@given(st.integers(0, SIZE_MAX))
def test_a_printed_size_reads_as_itself(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
    assert parse_rate(format_rate(size_bytes)) == size_bytes


@given(st.integers(0, 86_400_000_000))
def test_a_printed_duration_reads_as_itself(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds / 1e6)) == pytest.approx(microseconds / 1e6)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_cap, parse_duration, parse_downtime):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


def test_what_is_printed_is_what_one_would_write() -> None:
    assert format_size(256 << 20) == "256MiB"
    assert format_size(10**9) == "1GB"
    assert format_size(0) == "0B"
    assert format_rate(50 << 20) == "50MiB/s"
    assert format_duration(0.3) == "300ms"
    assert format_duration(0) == "0us"


def test_as_parameters_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="x", result_action="return_value")

    @app.default
    def command(
        *, memory: Size = 256 << 20, rate: Rate = 50 << 20, downtime: Duration = 0.3, json: Json = False
    ) -> tuple[int, int, float, bool]:
        return memory, rate, downtime, json

    assert app([]) == (256 << 20, 50 << 20, 0.3, False)
    assert app("--memory 1GiB --rate 1MB/s --downtime 1s --json") == (1 << 30, 10**6, 1.0, True)
    app("--help")
    shown = capsys.readouterr().out
    assert "[default: 256MiB]" in shown
    assert "[default: 300ms]" in shown
    assert "--no-json" not in shown


@pytest.mark.parametrize(("text", "count"), [("auto", None), ("0", 0), ("16", 16)])
def test_numbers_of_connections(text: str, count: int | None) -> None:
    assert parse_streams(text) == count
    assert parse_streams(format_streams(count)) == count


@pytest.mark.parametrize("text", ["17", "-1", "", "many", "1.5", "9999", "\u0663"])
def test_what_is_no_number_of_connections(text: str) -> None:
    with pytest.raises(ValueError, match="write auto, or 0 to 16"):
        parse_streams(text)
