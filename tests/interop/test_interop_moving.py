"""Transfers between processes. They fork, so each test is a process of its own: this one may have threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sterna_interop.moving import Memories, touched

pytestmark = pytest.mark.slow


def run(code: str) -> subprocess.CompletedProcess[str]:
    start = "from sterna_interop.moving import *; m = Memories(1 << 20); "
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_bare_loop_moves_all_of_it():
    done = run("t = Transfer(bare_send, bare_receive, m); print(t() > 0, t.cpu_s > 0, t() > 0)")
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_what_does_not_arrive_is_noticed():
    done = run("Transfer(lambda *_: 1.0, lambda *_: 0.0, m)()")
    assert "what has arrived is not what was sent" in done.stderr


def test_a_receiver_that_fails_is_noticed():
    done = run("Transfer(lambda *_: 1.0, lambda *_: 1 / 0, m)()")
    assert "the receiver failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_sender_that_fails_leaves_no_child():
    done = run(
        "import os\n"
        "try: Transfer(lambda *_: 1 / 0, bare_receive, m)()\n"
        "except ZeroDivisionError: pass\n"
        "try: os.wait()\n"
        "except ChildProcessError: print('none')"
    )
    assert done.stdout == "none\n"


def test_memory_is_filled_to_its_end():
    assert bytes(touched(10, b"abcd")) == b"abcdabcdab"


def test_what_is_there_from_before_does_not_count():
    memories = Memories(3 * 4096)
    memories.destination[:] = memories.source[:]
    memories.check()
    memories.spoil()
    with pytest.raises(RuntimeError, match="not what was sent"):
        memories.check()
    memories.spoil()
    memories.check()
