from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from etcd_support import small_etcd
from sterna.errors import ConfigError
from sterna.host.lease_etcd import EtcdLeaseStore
from sterna.host.lease_files import create_file_store
from sterna.host.open_store import StoreAccess, open_store, tls_context
from sterna.host.pki import init_ca, issue
from sterna.wire.records import Runner

GUEST = bytes(range(16))


@pytest.mark.parametrize("prefix", ["", "file:"])
async def test_a_directory_is_a_store(tmp_path: Path, prefix: str) -> None:
    create_file_store(tmp_path / "leases")
    store = open_store(f"{prefix}{tmp_path}/leases")
    assert await store.newest(GUEST) is None


@pytest.mark.parametrize(
    ("rest", "prefix"), [("", "sterna/leases/"), ("/", "sterna/leases/"), ("/a/b/", "a/b/")]
)
async def test_etcd_is_a_store(rest: str, prefix: str) -> None:
    async with small_etcd() as server:
        store = open_store(f"etcd://127.0.0.1:{server.port}{rest}")
        await store.claim(GUEST, 1, Runner("a", b"a" * 16))
        assert list(server.rows) == [f"{prefix}{GUEST.hex()}/{1:020}".encode()]
        await store.aclose()


@pytest.mark.parametrize("places", ["a", "a:1,b.example:65535", "[::1]:2379,10.0.0.1", "[fe80::1]"])
def test_members(places: str) -> None:
    assert isinstance(open_store(f"etcd://{places}"), EtcdLeaseStore)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "is no lease store"),
        ("file:", "is no lease store"),
        ("nfs://host/path", "is no lease store"),
        ("etcd://", "is no lease store"),
        ("etcd://a:0", "is no host and port"),
        ("etcd://a:65536", "is no host and port"),
        ("etcd://a:b", "is no host and port"),
        ("etcd://a,,b", "is no host and port"),
        ("etcd://user@a", "is no host and port"),
        ("etcd://a\nb", "is no host and port"),
        ("etcd://" + ",".join(["a"] * 17), "more than 16 members"),
        ("etcd://a/b c", "is no prefix of keys"),
        ("etcd://a/" + "b" * 201, "is no prefix of keys"),
    ],
)
def test_what_is_no_store(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        open_store(name)


def test_secrets_need_encryption(tmp_path: Path) -> None:
    """[LEA-11]"""
    (tmp_path / "password").write_text("secret")
    access = StoreAccess(user="mover", password_file=tmp_path / "password")
    with pytest.raises(ConfigError, match="need etcds://"):
        open_store("etcd://a", access)
    with pytest.raises(ConfigError, match="are for etcd"):
        open_store(str(tmp_path), access)
    assert "secret" not in repr(open_store("etcds://a", access))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    for access in (
        StoreAccess(ca=empty),
        StoreAccess(ca=missing),
        StoreAccess(certificate=empty),
        StoreAccess(certificate=missing, key=missing),
    ):
        with pytest.raises(ConfigError, match=r"cannot use .*PEM files are needed"):
            open_store("etcds://a", access)
    for access in (StoreAccess(user="mover"), StoreAccess(password_file=empty)):
        with pytest.raises(ConfigError, match="belong together"):
            open_store("etcds://a", access)
    for path in (missing, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="cannot read the password"):
            open_store("etcds://a", StoreAccess(user="mover", password_file=path))


def test_the_server_is_verified_by_its_name(tmp_path: Path) -> None:
    """[LEA-11]"""
    authority = init_ca(tmp_path).certificate
    host = issue(tmp_path, "host")
    context = tls_context(StoreAccess(authority, host.certificate, host.key))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
