"""Sterna moves a memory between two processes, plain and over TLS; a migration that fails is told."""

from __future__ import annotations

import pytest
from bench_support import run

from sterna import ErrorCode, Outcome
from sterna.core.events import Result
from sterna.errors import GuestError, TransportError
from sterna_interop.moving_sterna import check

START = """
import tempfile
from dataclasses import replace
from pathlib import Path
from sterna_interop.memories import *
from sterna_interop.moving import *
from sterna_interop.moving_sterna import *
from sterna_interop.moving_tls import Certificates
memories = Memories(9 << 20)
"""


@pytest.mark.slow
def test_plain_and_over_tls():
    said = run(
        START + "with tempfile.TemporaryDirectory() as directory:\n"
        "    for security in (PLAIN, Certificates(Path(directory)).security()):\n"
        "        print(sterna(memories, security).move(watched=True).seconds > 0)"
    )
    assert said == "True\n" * 2


@pytest.mark.slow
def test_over_data_connections():
    said = run(
        START + "options = replace(VERIFIED, streams=3, resume_s=0)\n"
        "print(sterna(memories, PLAIN, options).move().seconds > 0)"
    )
    assert said == "True\n"


@pytest.mark.slow
def test_many_at_once_each_with_its_part():
    said = run(
        START + "moved = sterna_many(memories, 3).move()\n"
        "print(0 < moved.more[0] <= moved.more[1] == moved.seconds)"
    )
    assert said == "True\n"


@pytest.mark.slow
def test_one_memory_mapped_several_times_is_a_guest_of_the_sum():
    said = run(
        START + "memories = Memories(12 << 20, times=3)\n"
        "sterna(memories).move()\n"
        "print(os.fstat(memories.destination.fileno()).st_blocks * 512 >> 20)"
    )
    assert said == "4\n"


@pytest.mark.slow
def test_holes_of_the_source_stay_holes():
    said = run(
        START + "memories = Memories(64 << 20, [(1 << 20, 5 << 20), (40 << 20, 1 << 20)])\n"
        "sterna(memories).move()\n"
        "print(os.fstat(memories.source.fileno()).st_blocks * 512 >> 20)"
    )
    assert said == "6\n"


def test_only_a_guest_that_has_moved_counts():
    check(Result(Outcome.COMPLETED, None))
    lost = TransportError(ErrorCode.CONNECTION_LOST)
    with pytest.raises(TransportError):
        check(Result(Outcome.ROLLED_BACK, lost.code, error=lost))
    with pytest.raises(GuestError, match="rolled_back"):
        check(Result(Outcome.ROLLED_BACK, None))
