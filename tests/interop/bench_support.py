"""Benchmarks as commands, in processes of their own: some fork, which a process with threads should not."""

from __future__ import annotations

import json
import subprocess
import sys


def bench(*arguments: str) -> dict:
    """The JSON object of `sterna bench`."""
    command = [sys.executable, "-m", "sterna", "bench", *arguments, "--runs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(code: str) -> str:
    """What a piece of Python prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
