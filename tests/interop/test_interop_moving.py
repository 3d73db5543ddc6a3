"""Transfers between processes. They fork, so each test is a process of its own: this one may have threads."""

from __future__ import annotations

import os

import pytest
from bench_support import run

from sterna_interop.memories import Memories
from sterna_interop.moving import beyond_guest_bytes

START = """
from sterna_interop.memories import *
from sterna_interop.moving import *
memories = Memories(3 << 20)
def receive(view, ready):
    view[:] = memories.sent
    ready(7)
def fail_together(view, port):
    raise ExceptionGroup("several", [ValueError("one of them")])
def send(view, port):
    assert bytes(view[:8]) == bytes(memories.sent[:8])
    return float(port)
"""


@pytest.mark.slow
def test_both_sides_have_their_memory_and_the_sender_the_port():
    moved = run(
        START + "moved = Processes(send, receive, memories).move(); print(moved.seconds, moved.cpu_s)"
    )
    seconds, cpu_s = moved.split(" ", 1)
    assert seconds == "7.0"
    assert all(float(each) >= 0 for each in cpu_s.strip("()\n").split(","))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "receive", "says"),
    [
        ("lambda *_: 1.0", "lambda view, ready: ready(1)", "what has arrived is not what was sent"),
        ("lambda *_: 1.0", "lambda *_: 1 / 0", "the receiver failed: ZeroDivisionError: division by zero"),
        ("lambda *_: 1 / 0", "lambda view, ready: ready(1)", "the sender failed: ZeroDivisionError"),
        ("fail_together", "lambda view, ready: ready(1)", "the sender failed: ValueError: one of them"),
        ("lambda *_: os._exit(0)", "lambda view, ready: ready(1)", "the sender failed: it has ended"),
    ],
)
def test_what_fails_is_told_and_leaves_no_child(send, receive, says):
    said = run(
        START + f"try: Processes({send}, {receive}, memories).move()\n"
        "except GuestError as error: print(error)\n"
        "try: os.wait()\n"
        "except ChildProcessError: print('nobody is left')"
    )
    assert says in said
    assert said.endswith("nobody is left\n")


@pytest.mark.slow
def test_what_else_the_sender_tells():
    said = run(
        START + "more = lambda view, port: (1.0, 2.0, 3.0)\n"
        "moved = Processes(more, receive, memories).move(); print(moved.seconds, moved.more)"
    )
    assert said == "1.0 (2.0, 3.0)\n"


@pytest.mark.slow
def test_a_watched_turn_tells_what_each_side_has_taken():
    said = run(
        START + "def waste(view, port):\n"
        "    kept = bytearray(b'x') * (32 << 20)\n"
        "    time.sleep(0.3)\n"
        "    return 0.0\n"
        "print(*Processes(waste, receive, memories).move(watched=True).peak_bytes)"
    )
    source, destination = (int(each) for each in said.split())
    assert 32 << 20 <= source < 64 << 20
    assert destination < 16 << 20


def test_shared_memory_is_the_guests_and_a_process_that_is_gone_has_none():
    before = beyond_guest_bytes(os.getpid())
    memories = Memories(64 << 20)
    assert beyond_guest_bytes(os.getpid()) - before < 32 << 20
    assert memories.size == 64 << 20
    assert beyond_guest_bytes(1 << 30) == 0


APART = """
import resource
from sterna_interop.moving import *
many = [object() for _ in range(300_000)]
def faults(pipe):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    len(list(many))  # which counts the references to each
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before,))
for apart in (False, True):
    with forked("one", faults, apart=apart) as side:
        print(*side.hear())
"""


@pytest.mark.slow
def test_a_process_that_is_apart_copies_nothing_later():
    shared, apart = map(int, run(APART).split())
    assert shared > 2 * apart
