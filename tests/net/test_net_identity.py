import pytest

from sterna.errors import ConfigError, TransportError
from sterna.net.identity import check_name, identity_of, is_name
from sterna.registry import ErrorCode


@pytest.mark.parametrize("name", ["a", "host-a", "7", "rack-3.node-12", "a" * 63])
def test_names(name):
    """[TLS-14]"""
    assert is_name(name)
    assert check_name(name) == name
    assert identity_of({"subjectAltName": (("DNS", "x"), ("URI", f"sterna:host:{name}"))}) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", ".a", "a.", "a..b", "a/b", "../a", "a b", "a\n", "a\0", "ä", "a_b", "a" * 64, "*"],
)
def test_what_is_no_name(name):
    """[TLS-14]"""
    assert not is_name(name)
    with pytest.raises(ConfigError, match="no host name"):
        check_name(name)
    with pytest.raises(TransportError, match="malformed identity"):
        identity_of({"subjectAltName": (("URI", f"sterna:host:{name}"),)})


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((), "no identity"),
        ((("DNS", "sterna:host:a"),), "no identity"),
        ((("URI", "spiffe://x/a"),), "no identity"),
        ((("URI", "sterna:host:a"), ("URI", "sterna:host:b")), "several identities"),
        ((("URI", "sterna:host:a"), ("URI", "sterna:host:a")), "several identities"),
    ],
)
def test_a_certificate_bears_exactly_one(names, what):
    """[TLS-12, TLS-13]"""
    with pytest.raises(TransportError, match=what) as caught:
        identity_of({"subjectAltName": names})
    assert caught.value.code == ErrorCode.PEER_NOT_LISTED
    with pytest.raises(TransportError, match="no identity"):
        identity_of({})
