"""How many data connections a link and a switchover call for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.net.streams import AUTO_MAX, enough_streams, window_bytes


@pytest.mark.parametrize(
    ("rtt_s", "follow", "count"),
    [
        (None, False, 0),
        (None, True, 1),
        (0.0001, False, 0),
        (0.0001, True, 1),
        (0.003, False, 0),
        (0.005, False, 2),
        (0.01, True, 3),
        (0.1, False, AUTO_MAX),
    ],
)
def test_as_many_as_fill_the_link_and_one_where_pages_follow(rtt_s, follow, count):
    assert enough_streams(rtt_s, pages_may_follow=follow, window=4 << 20) == count


def test_no_more_than_a_cap_lets_through_has_to_fill_the_link():
    def enough(rtt_s: float, cap_bytes_s: float) -> int:
        return enough_streams(rtt_s, pages_may_follow=False, cap_bytes_s=cap_bytes_s, window=4 << 20)

    assert enough(0.1, 10e6) == 0
    assert enough(0.1, 125e6) == 3
    assert enough(0.1, 10e9) == AUTO_MAX
    assert enough(0.005, 10e9) == 2


def test_the_window_is_the_kernel_s(tmp_path: Path):
    assert window_bytes() > 0
    file = tmp_path / "tcp_wmem"
    assert window_bytes(file) == 4 << 20
    for text in ("", "4096 16384", "a b c"):
        file.write_text(text)
        assert window_bytes(file) == 4 << 20
    file.write_text("4096\t16384\t1048576\n")
    assert window_bytes(file) == 1 << 20
