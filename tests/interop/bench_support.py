"""Benchmarks as commands, in processes of their own: some fork, which a process with threads should not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from sterna_interop.qemu import PROGRAM


def bench(*arguments: str) -> dict:
    """The JSON object of `sterna bench`."""
    command = [sys.executable, "-m", "sterna", "bench", *arguments, "--runs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def beside_qemu() -> tuple[str, ...]:
    """The option for turns of QEMU's, where there is one; other tests fail where it should be there."""
    return ("--against", "qemu") if shutil.which(PROGRAM) else ()


def run(code: str) -> str:
    """What a piece of Python prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
