"""Certificates and connected pairs for the tests of `sterna.net`."""

import pytest
from net_support import Authority, shake_hands

from sterna.host import pki
from sterna.net.tls import TlsConfig


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    directory = tmp_path_factory.mktemp("pki")
    pki.init_ca(directory)
    return Authority(directory)


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory) -> Authority:
    directory = tmp_path_factory.mktemp("other-pki")
    pki.init_ca(directory)
    return Authority(directory)


@pytest.fixture(scope="session")
def host_a(authority) -> TlsConfig:
    return authority.config(authority.issue("host-a", hosts=["localhost", "127.0.0.1", "::1"]))


@pytest.fixture(scope="session")
def host_b(authority) -> TlsConfig:
    return authority.config(authority.issue("host-b"))


@pytest.fixture
async def tls_pair(host_a, host_b):
    """The dialler's end (host-b) and the acceptor's (host-a), with small socket buffers."""
    dialler, acceptor = await shake_hands(host_b, host_a, "host-a", buffer_bytes=64 * 1024)
    yield dialler, acceptor
    for transport in (dialler, acceptor):
        transport.abort()
