"""A forked shim is like a started one; when the zygote dies, who waits is told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sterna_interop.contract import Exit
from sterna_interop.start import Start, Zygote, program

MINIMAL = "sterna_interop.minimal.__main__"


async def output(start: Start, *arguments: str) -> tuple[int, str, str]:
    process = await start(arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    texts = [b"", b""]
    for place, stream in enumerate((process.stdout, process.stderr)):
        async with stream:
            async for data in stream:
                texts[place] += data
    return await process.wait(), texts[0].decode(), texts[1].decode()


async def test_a_program() -> None:
    start = program((sys.executable, "-I", "-c", "import sys; print(sys.argv[1]); sys.exit(5)"))
    assert await output(start, "hello") == (5, "hello\n", "")


@pytest.mark.slow
async def test_forks() -> None:
    zygote = Zygote(MINIMAL)
    try:
        code, _, error = await output(zygote.start, "--params", "/none", "--out", "/")
        assert (code, "FileNotFoundError" in error) == (Exit.FAILED, True)
        codes = [await output(zygote.start, "--wrong", "x") for _ in range(3)]
        assert [each[0] for each in codes] == [Exit.FAILED] * 3
    finally:
        zygote.close()


async def test_a_dead_zygote(tmp_path: Path) -> None:
    (tmp_path / "shim_of_the_test.py").write_text("import signal\ndef main(_): signal.pause()\n")
    zygote = Zygote("shim_of_the_test", str(tmp_path))
    try:
        process = await zygote.start([])
        zygote._process.kill()
        zygote._process.wait()
        with pytest.raises(OSError, match="has died"):
            await process.wait()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(OSError, match="has died"):
            await zygote.start(["x"])
    finally:
        zygote.close()
