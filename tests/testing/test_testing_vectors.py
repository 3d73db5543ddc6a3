"""The vectors are found, in the tree and where a wheel has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sterna.errors import ConfigError
from sterna.testing import vectors


def test_those_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vectors.vectors_directory()
    assert (found / "hello.json").is_file()
    shutil.copytree(found, tmp_path / "vectors")
    monkeypatch.setattr(vectors, "_PACKAGE", tmp_path / "vectors")
    assert vectors.vectors_directory() == tmp_path / "vectors"


def test_an_installation_without_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_PACKAGE", tmp_path)
    monkeypatch.setattr(vectors, "_TREE", tmp_path)
    with pytest.raises(ConfigError, match="install sterna again"):
        vectors.vectors_directory()
