"""Directories for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for the path of a socket, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="sterna-matrix-test-"))
    yield path
    shutil.rmtree(path)
