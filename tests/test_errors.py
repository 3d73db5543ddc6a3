from __future__ import annotations

import pytest

from sterna.errors import (
    ConfigError,
    GuestError,
    LimitExceeded,
    LocalProtocolError,
    PeerAborted,
    PeerIncompatible,
    PeerMisbehaved,
    ProtocolError,
    RecordError,
    RemoteProtocolError,
    SternaError,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    TransportError,
    remote_error,
)
from sterna.registry import ERRORS, ErrorClass, ErrorCode


@pytest.mark.parametrize("code", ErrorCode)
def test_a_remote_error_has_the_class_that_the_registry_gives(code: ErrorCode) -> None:
    kinds = {ErrorClass.INCOMPATIBLE: PeerIncompatible, ErrorClass.LIMIT: LimitExceeded}
    error = remote_error(code, clause="HDR-1")
    assert type(error) is kinds.get(ERRORS[code].kind, PeerMisbehaved)
    assert isinstance(error, RemoteProtocolError)
    assert error.code is code


def test_an_error_says_what_where_and_which_clause() -> None:
    error = remote_error(ErrorCode.MALFORMED, "a row is cut", clause="PGS-4", offset=40, frame=0x8011)
    assert str(error) == "malformed: a row is cut, frame 0x8011, offset 40, [PGS-4]"
    assert (error.clause, error.offset, error.frame) == ("PGS-4", 40, 0x8011)


def test_without_a_detail_the_registry_speaks() -> None:
    assert str(LocalProtocolError(ErrorCode.BAD_MAGIC)) == f"bad_magic: {ERRORS[ErrorCode.BAD_MAGIC].text}"
    assert str(TransportError(ErrorCode.PEER_SILENT)) == f"peer_silent: {ERRORS[ErrorCode.PEER_SILENT].text}"
    assert str(TransportError(ErrorCode.CONNECT_FAILED, "refused")) == "connect_failed: refused"


def test_a_peers_words_are_quoted() -> None:
    """[SEC-12]"""
    error = PeerAborted(ErrorCode.FULL, "no \x1b[31mroom", retry_after_ms=500, items=("avx\x07",))
    assert str(error) == r"the peer ended the session: full: 'no \x1b[31mroom' ('avx\x07')"
    assert error.retry_after_ms == 500


def test_a_peers_unknown_code_is_kept_as_a_number() -> None:
    error = PeerAborted(0xFFFF)
    assert (error.wire_code, error.code) == (0xFFFF, ErrorCode.INTERNAL)
    assert str(error) == "the peer ended the session: code 0xffff: ''"


def test_errors_of_stores_and_records() -> None:
    assert str(RecordError("no space")) == "record_failed: no space"
    assert RecordError("process 7 has it", ErrorCode.BUSY).code is ErrorCode.BUSY
    for kind in (StoreUnavailable, StoreDamaged):
        assert issubclass(kind, StoreError)
        assert (str(kind("no answer")), kind("").code) == ("no answer", ErrorCode.UNDECIDED)


def test_errors_of_guest_and_operator() -> None:
    assert str(GuestError("it is gone")) == "guest_failed: it is gone"
    assert GuestError("no room", ErrorCode.FULL).code is ErrorCode.FULL
    assert str(ConfigError("no file x: make it")) == "no file x: make it"


def test_one_base_catches_what_is_raised_on_purpose() -> None:
    for kind in (ProtocolError, PeerAborted, TransportError, GuestError, ConfigError):
        assert issubclass(kind, SternaError)
    assert issubclass(LocalProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
