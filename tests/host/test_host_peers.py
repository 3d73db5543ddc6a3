"""The peer list: what it allows, and how it complains."""

import pytest

from sterna.errors import ConfigError, TransportError
from sterna.host.peers import Direction, PeerList
from sterna.registry import ErrorCode

ID = bytes(range(16))
PRINT = b"\x5f" * 32
OTHER = b"\x60" * 32

LIST = f"""
# Hosts of the first rack.
[[peer]]
identity = "host-a"
may_send = ["*"]

[[peer]]
identity = "sterna:host:host-b"
may_send = ["web-?", "id:{ID.hex()}"]
may_receive = ["db-[0-9]"]
fingerprint = "sha256:{PRINT.hex(":").upper()}"

[[peer]]
identity = "host-c"
fingerprint = ["{PRINT.hex()}", "{OTHER.hex()}"]
"""


@pytest.fixture
def peers():
    return PeerList.parse(LIST, "peers.toml")


def denied(peers, *arguments) -> TransportError:
    with pytest.raises(TransportError) as caught:
        peers.authorise(*arguments)
    return caught.value


def test_load(tmp_path):
    path = tmp_path / "peers.toml"
    path.write_text(LIST)
    peers = PeerList.load(path)
    assert set(peers.rules) == {"host-a", "host-b", "host-c"}
    assert peers.source == str(path)


def test_listed_peers_may_connect(peers):
    peers.check_peer("host-a", OTHER)
    peers.check_peer("host-b", PRINT)
    for fingerprint in (PRINT, OTHER):
        peers.check_peer("host-c", fingerprint)


def test_unlisted_peers_may_not(peers):
    for function, arguments in (
        (peers.check_peer, ()),
        (peers.authorise, (ID, "web-1", Direction.SEND)),
    ):
        with pytest.raises(TransportError) as caught:
            function("host-x", PRINT, *arguments)
        assert caught.value.code == ErrorCode.PEER_NOT_LISTED
        assert "'host-x' is not in peers.toml: add a [[peer]]" in str(caught.value)


def test_another_certificate_of_a_listed_peer(peers):
    error = denied(peers, "host-b", OTHER, ID, "web-1", Direction.SEND)
    assert error.code == ErrorCode.PEER_NOT_LISTED
    assert f"add fingerprint {OTHER.hex(':')}" in str(error)


@pytest.mark.parametrize(
    ("identity", "guest_id", "name", "direction", "allowed"),
    [
        ("host-a", ID, "anything at all", Direction.SEND, True),
        ("host-a", ID, "anything at all", Direction.RECEIVE, False),
        ("host-b", bytes(16), "web-1", Direction.SEND, True),
        ("host-b", bytes(16), "web-12", Direction.SEND, False),
        ("host-b", bytes(16), "WEB-1", Direction.SEND, False),
        ("host-b", ID, "any name", Direction.SEND, True),
        ("host-b", bytes(16), ID.hex(), Direction.SEND, False),
        ("host-b", bytes(16), "id:" + ID.hex(), Direction.SEND, False),
        ("host-b", bytes(16), "db-7", Direction.RECEIVE, True),
        ("host-b", bytes(16), "db-7", Direction.SEND, False),
        ("host-c", ID, "web-1", Direction.SEND, False),
    ],
)
def test_guests(identity, guest_id, name, direction, allowed):
    peers = PeerList.parse(LIST, "peers.toml")
    if allowed:
        peers.authorise(identity, PRINT, guest_id, name, direction)
    else:
        error = denied(peers, identity, PRINT, guest_id, name, direction)
        assert error.code == ErrorCode.NOT_AUTHORISED
        assert f"may_{direction}" in str(error)
        assert guest_id.hex() in str(error)


def test_a_guest_without_a_name_yet_is_let_in_if_some_name_could_be(peers):
    assert peers.may_send("host-a", bytes(16))
    for identity in ("host-c", "nobody"):
        assert not peers.may_send(identity, ID)
    by_id = PeerList.parse(f'[[peer]]\nidentity = "host-d"\nmay_send = ["id:{ID.hex()}"]', "peers.toml")
    assert by_id.may_send("host-d", ID)
    assert not by_id.may_send("host-d", bytes(16))


def test_hostile_names_take_no_time(peers):
    rules = PeerList.parse('[[peer]]\nidentity="a"\nmay_send=["' + "*a" * 100 + 'b"]', "p")
    assert denied(rules, "a", PRINT, ID, "a" * 255, Direction.SEND).code == ErrorCode.NOT_AUTHORISED


def test_an_empty_list_lets_nobody_in():
    with pytest.raises(TransportError):
        PeerList.parse("", "empty").check_peer("host-a", PRINT)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[peer]\n", r"p: not TOML: .*line 1"),
        ("x = " + "[" * 100_000, "p: not TOML"),
        ("[[peers]]\n", "p: unknown key 'peers'"),
        ('peer = "host-a"', "two brackets"),
        ("[peer]\nidentity = 'a'", "two brackets"),
        ("peer = [1]", r"p: \[\[peer\]\] number 1 is no table"),
        ("\n\n[[peer]]\n", r"p, line 3: \[\[peer\]\] number 1: identity is missing"),
        ("[[peer]]\nidentity = 7", "identity is missing"),
        ("[[peer]]\nidentity = '../a'", "no host's identity"),
        ("[[peer]]\nidentity = 'a'\n[[peer]]\nidentity = 'a'", r"p, line 3: 'a' is listed twice"),
        ("[[peer]]\nidentity = 'a'\nmaysend = []", "unknown key 'maysend'; known are fingerprint, identity"),
        ("[[peer]]\nidentity = 'a'\nmay_send = '*'", r"number 1 \(a\): may_send is a list"),
        ("[[peer]]\nidentity = 'a'\nmay_send = [1]", "may_send is a list"),
        ("[[peer]]\nidentity = 'a'\nmay_receive = ['']", "may_receive: '' is no guest"),
        ("[[peer]]\nidentity = 'a'\nmay_send = ['id:12']", "'id:12' is no guest"),
        ("[[peer]]\nidentity = 'a'\nmay_send = ['" + "x" * 256 + "']", "is no guest"),
        ('[[peer]]\nidentity = "a"\nmay_send = ["a\\u0007"]', "is no guest"),
        ("[[peer]]\nidentity = 'a'\nmay_send = [" + "'*'," * 1025 + "]", "at most 1024"),
        ("[[peer]]\nidentity = 'a'\nfingerprint = 7", "fingerprint is a text"),
        ("[[peer]]\nidentity = 'a'\nfingerprint = [7]", "fingerprint is a text"),
        ("[[peer]]\nidentity = 'a'\nfingerprint = []", "empty list"),
        ("[[peer]]\nidentity = 'a'\nfingerprint = ''", "no SHA-256 fingerprint"),
        ("[[peer]]\nidentity = 'a'\nfingerprint = '5f:5f'", "no SHA-256 fingerprint"),
    ],
)
def test_complaints(text, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        PeerList.parse(text, "p")
    assert len(str(caught.value)) < 500


def test_no_line_is_better_than_a_wrong_one():
    text = 'peer = [{identity = """\n[[peer]]\n"""}, {identity = "b"}]'
    with pytest.raises(ConfigError, match=r"^p: \[\[peer\]\] number 1:"):
        PeerList.parse(text, "p")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the peer list"):
        PeerList.load(tmp_path / "none.toml")
    path = tmp_path / "peers.toml"
    path.write_bytes(b"# ok\n# \xff\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        PeerList.load(path)
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than"):
        PeerList.load(path)
