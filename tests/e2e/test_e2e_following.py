"""Real processes, real TLS: a guest runs at the destination before all of its pages are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("userfaultfd")


def demo(*arguments: str) -> dict:
    """`sterna demo --json`, which must succeed; its object."""
    command = [sys.executable, "-P", "-m", "sterna", "demo", "--guest", "process", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], done.stdout[-2000:])
    return json.loads(done.stdout)


def whole(found: dict) -> None:
    """The guest has moved, and lost nothing."""
    assert found["outcome"] == "completed"
    assert found["digest"]["equal"]
    assert found["audit"]["errors"] == 0
    assert found["audit"]["writes_after"] > 0


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_pages_follow_a_live_guest(switchover: str) -> None:
    """[PCY-6] [PCY-12] [PCY-13] [MEM-16] The guest checks every page that it writes, and is audited."""
    found = demo(
        *("--switchover", switchover, "--memory", "64MiB", "--hot", "16MiB", "--dirty-rate", "100MiB/s")
    )
    whole(found)
    after = found["after"]
    assert (found["switchover"], found["style"]) == (switchover, switchover)
    assert after["stale_pages"] == after["demanded_pages"] + after["pushed_pages"] > 0
    assert after["seconds_until_complete"] > 0
    assert after["mismatched_pages"] == after["outside_pages"] == 0
    if switchover == "post-copy":
        assert after["stale_pages"] == (64 << 20) // 4096
        assert found["demand_faults"]["count"] > 0
        assert [each["pages"] for each in found["rounds"]] == [0]


def test_auto_moves_what_stop_and_copy_cannot() -> None:
    """[CON-36] [converges] A guest that writes faster than the downtime allows is not slowed down for it."""
    found = demo(
        *("--switchover", "auto", "--downtime", "30ms"),
        *("--memory", "96MiB", "--hot", "64MiB", "--dirty-rate", "2GiB/s"),
    )
    whole(found)
    assert found["style"] == "bitmap"
    assert {each["throttle"] for each in found["rounds"]} == {0.0}
