from __future__ import annotations

from sterna.errors import GuestError


class CapabilityMissing(GuestError):  # noqa: N818 - it names what is wrong, as all of sterna.errors do
    """The kernel, or this process's rights, lack something.

    Attributes:
        capability: the name that `sterna.linux.capabilities.probe` gives it.
        reason: what the kernel said.
        remedy: what an operator can do about it.
    """

    def __init__(self, capability: str, reason: str, remedy: str) -> None:
        super().__init__(f"{capability}: {reason}; {remedy}")
        self.capability = capability
        self.reason = reason
        self.remedy = remedy
