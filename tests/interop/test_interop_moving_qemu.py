"""QEMU moves the same memory, plain and over TLS, with one channel and with more."""

from __future__ import annotations

import pytest
from bench_support import run

START = """
import tempfile
from pathlib import Path
from sterna_interop.memories import *
from sterna_interop.moving import *
from sterna_interop.moving_qemu import *
from sterna_interop.moving_tls import Certificates
memories = Memories(17 << 20)
"""


@pytest.mark.slow
@pytest.mark.needs("qemu")
def test_all_of_it_arrives():
    said = run(
        START + "with tempfile.TemporaryDirectory() as directory:\n"
        "    tls = Certificates(Path(directory)).for_qemu()\n"
        "    for settings in (Settings(), Settings(channels=2, tls=tls)):\n"
        "        moved = QemuMoves(memories, Path(directory), settings).move(watched=True)\n"
        "        print(moved.seconds > 0, min(moved.cpu_s) > 0)"
    )
    assert said == "True True\n" * 2
