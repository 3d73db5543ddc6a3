"""A process that stops itself at a request, once, and where nobody asked for it, never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sterna.core.events import MarkGranted, Pause, Persist, ProbeStore, TakeStorage
from sterna.core.records import Granted, Released
from sterna.core.recovery import FreeRoom, Note
from sterna.errors import ConfigError, GuestError
from sterna.host.failpoint import FAILS, VARIABLE, failpoint, name_of
from sterna.net.options import ignore_request
from sterna.wire.records import NO_RUNNER

# It says where it stands before and after each call.
PROGRAM = f"""
from sterna.core.events import MarkGranted, Pause
from sterna.host.failpoint import failpoint
tell = failpoint({{"{VARIABLE}": "after Pause"}})
for request in (MarkGranted(2), Pause(), Pause()):
    for done in (False, True):
        tell(request, done=done)
        print(type(request).__name__, done, flush=True)
"""


def test_names() -> None:
    assert name_of(Pause()) == "Pause"
    assert name_of(MarkGranted(2)) == "MarkGranted"
    assert name_of(ProbeStore(1, NO_RUNNER)) == "ProbeStore"
    assert name_of(ProbeStore(1, NO_RUNNER, last=True)) == "ProbeStore:last"
    assert name_of(Persist(Granted(b"s" * 16, 2))) == "Persist:Granted"
    assert name_of(Persist(Released(b"s" * 16))) == "Persist:Released"
    assert name_of(Note(Released(b"s" * 16))) == "Note:Released"
    assert name_of(FreeRoom()) == "FreeRoom"


def test_without_the_variable_nothing_is_called() -> None:
    assert failpoint({}) is ignore_request
    ignore_request(Pause(), done=False)


@pytest.mark.parametrize("text", ["", "Pause", "at Pause", "after", "after Pause now", "after Persist:"])
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="before REQUEST"):
        failpoint({VARIABLE: text})


@pytest.mark.parametrize("text", ["", "before Pause", "Pause Pause", "Persist:"])
def test_a_request_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="say REQUEST"):
        failpoint({FAILS: text})


def test_a_request_fails_once() -> None:
    tell = failpoint({FAILS: "TakeStorage"})
    tell(Pause(), done=False)
    with pytest.raises(GuestError, match="TakeStorage"):
        tell(TakeStorage(), done=False)
    tell(TakeStorage(), done=False)
    tell(TakeStorage(), done=True)


def test_it_stops_there_and_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped is not None
        assert (stopped.si_code, stopped.si_status) == (os.CLD_STOPPED, signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    lines = said.splitlines()
    assert lines[2:4] == ["Pause False", "Pause True"]
    assert len(lines) == 6
    assert process.returncode == 0
