from __future__ import annotations

import subprocess
import sys

from sterna.cli.version import version_line


def test_the_command_without_its_script() -> None:
    """The demo starts its processes this way."""
    done = subprocess.run(
        [sys.executable, "-m", "sterna", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, version_line() + "\n")
