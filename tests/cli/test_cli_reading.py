"""What inspect and verify share. What they make of it is shown in their own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from observe_support import migration
from sterna.cli.reading import opened, session_lines
from sterna.errors import ConfigError
from sterna.observe import summary


def test_a_file_that_ends_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"data")
    with opened(str(path)) as file:
        assert file.read() == b"data"
    with pytest.raises(ConfigError, match="Input/output error"), opened(str(path)):
        raise OSError(5, "Input/output error")
    with pytest.raises(BrokenPipeError), opened(str(path)):
        raise BrokenPipeError


def test_rounds_beyond_those_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "ROUNDS_TOLD", 3)
    lines = list(session_lines(1, migration().follow()))
    assert "  and 2 more rounds" in lines
