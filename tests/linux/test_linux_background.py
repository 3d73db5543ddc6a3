"""Work in a thread goes on until it ends or is stopped, and holds nothing behind that."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sterna.linux.background import Background


def test_it_goes_through_to_the_end_in_another_thread() -> None:
    threads = []

    def steps() -> Iterator[None]:
        for _ in range(3):
            threads.append(threading.current_thread())
            yield

    Background(steps(), "work").join()
    assert len(threads) == 3
    assert {thread.name for thread in threads} == {"work"}
    assert threading.current_thread() not in threads


def test_stopped_it_ends_at_its_next_step_and_has_let_go() -> None:
    begun, go_on = threading.Event(), threading.Event()
    held = bytearray(1)
    done = []

    def steps() -> Iterator[None]:
        view = memoryview(held)
        begun.set()
        go_on.wait()
        for step in range(3):
            done.append(step)
            yield
        view.release()

    work = Background(steps(), "work")
    begun.wait()
    with pytest.raises(BufferError):
        held.append(0)
    work._stopped = True  # as `stop` says first
    go_on.set()
    work.stop()
    work.stop()
    assert done == [0]
    held.append(0)


def test_without_a_thread_it_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    held = bytearray(1)

    def steps(view: memoryview) -> Iterator[None]:
        yield
        view.release()

    with pytest.raises(RuntimeError, match="thread"):
        Background(steps(memoryview(held)), "work")
    held.append(0)
