"""One world a test, one certificate authority for all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from commands import World, make_pki

from sterna_interop.start import Zygote


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of host-a, host-b and host-c; only the first two are on the peer list."""
    return make_pki(tmp_path_factory.mktemp("pki"), "host-a", "host-b", "host-c")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for the path of a socket, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="sterna-e2e-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What all commands of this process's tests are forked from."""
    zygote = Zygote("command_module", str(Path(__file__).parent))
    yield zygote
    zygote.close()


@pytest.fixture
async def world(directory: Path, pki: Path, zygote: Zygote, nursery: trio.Nursery) -> AsyncIterator[World]:
    """A directory and its processes, which end with the test."""
    world = World(directory, pki, zygote, nursery)
    try:
        yield world
    finally:
        with trio.CancelScope(shield=True):
            await world.close()
