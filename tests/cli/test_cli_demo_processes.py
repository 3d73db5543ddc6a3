"""What the demo makes of its children's words. The whole of it runs in tests/e2e."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sterna.cli.demo_processes import Child, ChildError, ProcessDemo
from sterna.cli.demo_run import Wishes
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.errors import ConfigError

WISHES = Wishes(memory_bytes=1 << 20, rate_bytes_s=0, hot_bytes=1 << 19, insecure=True, evidence=None)
SECURITY = {"source": ["--insecure"], "destination": ["--insecure"]}


class Children:
    """Starts programs as children of a demo."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []

    async def start(self, program: str) -> Child:
        log = self.directory / "log"
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=stderr
            )
        self.children.append(Child("child", process, log))
        return self.children[-1]


@pytest.fixture
async def children(tmp_path: Path) -> AsyncIterator[Children]:
    started = Children(tmp_path)
    yield started
    with trio.CancelScope(shield=True):
        for child in started.children:
            child.process.kill()
            await child.process.wait()
            if child.process.stdout is not None:
                await child.process.stdout.aclose()


async def test_lines_come_one_by_one_however_they_are_cut(children: Children) -> None:
    program = """
import sys
for piece in ('{"schema": 1, "ev', 'ent": "a"}\\n{"schema": 1}\\n', '{"schema": 1, "event": "c"}\\n'):
    sys.stdout.write(piece); sys.stdout.flush()
"""
    child = await children.start(program)
    assert (await child.next_line() or {})["event"] == "a"
    assert (await child.until("c"))["event"] == "c"
    assert child.last["event"] == "c"
    assert await child.next_line() is None


async def test_a_child_that_ends_too_early_is_quoted(children: Children) -> None:
    child = await children.start("import sys; sys.stderr.write('no such thing'); sys.exit(3)")
    with pytest.raises(ChildError, match="exit code 3: no such thing"):
        await child.until("listening")


@pytest.mark.parametrize("line", ['{"event": "a"}', "[1]", '{"schema": 99}'])
async def test_a_child_of_another_version_is_not_understood(children: Children, line: str) -> None:
    child = await children.start(f"print({line!r})")
    with pytest.raises(ChildError, match="unknown"):
        await child.next_line()


async def test_a_line_has_an_end(children: Children) -> None:
    child = await children.start("while True: print('x' * 65536, end='')")
    with pytest.raises(ChildError, match="without end"):
        await child.next_line()


def test_a_path_that_is_too_long_for_a_socket_is_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TMPDIR"):
        ProcessDemo(WISHES, Reporter(Output(json=True)), tmp_path / ("x" * 100), SECURITY)
