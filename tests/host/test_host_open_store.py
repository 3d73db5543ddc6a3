from __future__ import annotations

from pathlib import Path

import pytest

from sterna.errors import ConfigError
from sterna.host.lease_files import create_file_store
from sterna.host.open_store import open_store


@pytest.mark.parametrize("prefix", ["", "file:"])
async def test_a_directory_is_a_store(tmp_path: Path, prefix: str) -> None:
    create_file_store(tmp_path / "leases")
    store = open_store(f"{prefix}{tmp_path}/leases")
    assert await store.newest(bytes(range(16))) is None


@pytest.mark.parametrize("name", ["", "file:", "redis://host", "nfs://host/path"])
def test_what_is_no_store(name: str) -> None:
    with pytest.raises(ConfigError, match="is no lease store"):
        open_store(name)
