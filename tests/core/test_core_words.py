import pytest

from sterna.core.words import count_text, duration_text, rate_text, share_text, size_text, times_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (13_002_342, "12.4 MiB"),
        (256 << 20, "256 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (1.55 * (1 << 30), "1.6 GiB"),
        (1 << 60, "1 EiB"),
        (5000 << 60, "5000 EiB"),
    ],
)
def test_sizes_are_binary(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("rate_bytes_s", "text"),
    [
        (0, "0 B/s"),
        (999, "999 B/s"),
        (1e3, "1 kB/s"),
        (125e6, "125 MB/s"),
        (2.1e9, "2.1 GB/s"),
        (1e15, "1000 TB/s"),
    ],
)
def test_rates_are_decimal(rate_bytes_s: float, text: str) -> None:
    assert rate_text(rate_bytes_s) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (85e-6, "85 µs"),
        (0.000999, "1 ms"),
        (0.3, "300 ms"),
        (0.9499, "950 ms"),
        (0.96, "1 s"),
        (1.25, "1.2 s"),
        (99, "99 s"),
        (720, "12 min"),
        (7200, "2 h"),
    ],
)
def test_durations_have_two_digits_or_more(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_shares_are_whole_percents() -> None:
    assert share_text(0.3) == "30 %"
    assert share_text(0.99) == "99 %"


@pytest.mark.parametrize(("count", "text"), [(0, "0 pages"), (1, "1 page"), (2, "2 pages")])
def test_counts(count: int, text: str) -> None:
    assert count_text(count, "page") == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 times"), (1, "once"), (2, "2 times")])
def test_how_often(count: int, text: str) -> None:
    assert times_text(count) == text
