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
from pathlib import Path
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


def test_only_a_guest_that_has_moved_counts():
    check(Result(Outcome.COMPLETED, None))
    lost = TransportError(ErrorCode.CONNECTION_LOST)
    with pytest.raises(TransportError):
        check(Result(Outcome.ROLLED_BACK, lost.code, error=lost))
    with pytest.raises(GuestError, match="rolled_back"):
        check(Result(Outcome.ROLLED_BACK, None))
