from __future__ import annotations

from sterna.errors import GuestError
from sterna.linux.errors import CapabilityMissing
from sterna.registry import ErrorCode


def test_says_what_is_missing_why_and_what_helps() -> None:
    error = CapabilityMissing("kvm", "/dev/kvm: no such file", "load kvm_amd")
    assert isinstance(error, GuestError)
    assert error.code is ErrorCode.GUEST_FAILED
    assert str(error) == "guest_failed: kvm: /dev/kvm: no such file; load kvm_amd"
