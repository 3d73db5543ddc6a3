"""Where records are and which store is asked, as the options say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.cli.ownership import Ownership, default_records
from sterna.errors import ConfigError
from sterna.host.lease_files import FileLeaseStore, create_file_store


def test_records_are_in_the_user_s_state_by_the_host_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine may play two hosts, which must not have each other's records."""
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_records("host-a") == Path("/var/state/sterna/records/host-a")
    assert Ownership().directory("host-b") == Path("/var/state/sterna/records/host-b")
    assert Ownership(records=Path("/srv/r")).directory("host-b") == Path("/srv/r")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_records("h") == Path("/home/somebody/.local/state/sterna/records/h")


async def test_a_store_is_opened_by_its_name(tmp_path: Path) -> None:
    create_file_store(tmp_path / "leases")
    async with Ownership().opened_store() as store:
        assert store is None
    async with Ownership(store=str(tmp_path / "leases")).opened_store() as store:
        assert isinstance(store, FileLeaseStore)
        assert await store.newest(bytes(16)) is None


async def test_what_is_no_store_is_told_at_once(tmp_path: Path) -> None:
    for wrong in (
        Ownership(store="zookeeper://x"),
        Ownership(store_user="somebody"),
        Ownership(store=str(tmp_path), store_user="somebody"),
        Ownership(store="etcds://127.0.0.1:1", store_ca=tmp_path / "none.pem"),
    ):
        with pytest.raises(ConfigError):
            async with wrong.opened_store():
                pass


async def test_a_store_that_is_needed_at_once_is_asked_at_once(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    await Ownership().check_store()
    with pytest.raises(
        ConfigError, match=f"--store: no lease store at {leases}: .*sterna lease init {leases}"
    ):
        await Ownership(store=str(leases)).check_store()
    create_file_store(leases)
    await Ownership(store=str(leases)).check_store()
