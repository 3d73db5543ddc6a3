"""How long a thread ran, and waited for a processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.linux import schedstat


@pytest.mark.parametrize(("text", "times"), [("123 456 7\n", (123, 456)), ("", (0, 0)), ("x y z", (0, 0))])
def test_the_kernels_words(
    text: str, times: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "schedstat").write_text(text)
    monkeypatch.setattr(schedstat, "_SCHEDSTAT", tmp_path / "schedstat")
    assert schedstat.thread_ns() == times


def test_a_kernel_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedstat, "_SCHEDSTAT", tmp_path / "none")
    assert schedstat.thread_ns() == (0, 0)


def test_here_it_only_grows() -> None:
    before, after = schedstat.thread_ns(), schedstat.thread_ns()
    assert all(one >= other >= 0 for one, other in zip(after, before, strict=True))
