"""Endpoints that are broken on purpose: what a world must find, or it proves nothing."""

from __future__ import annotations

from enum import StrEnum


class Defect(StrEnum):
    """What an endpoint does wrong."""

    RUNS_BEFORE_CLAIM = "runs-before-claim"
    RESUMES_ON_TIMEOUT = "resumes-on-timeout"
    EPOCH_REUSED = "epoch-reused"
    START_NOT_WRITTEN = "start-not-written"
    ABSENT_IS_LOST = "absent-is-lost"
    FREED_ON_LOST_CLAIM = "freed-on-lost-claim"
    OLD_CONTROLLER = "old-controller"
    PAGES_FREED = "pages-freed"
    INSTALLED_TWICE = "installed-twice"
    TAKEN_UP_UNASKED = "taken-up-unasked"
    NUMBERS_REUSED = "numbers-reused"
    OPENING_FORGOTTEN = "opening-forgotten"
    BITS_IGNORED = "bits-ignored"
    ALL_TAKEN_AS_INSTALLED = "all-taken-as-installed"
    TAKEN_FOR_NEW = "taken-for-new"
    FORGOTTEN_AS_HELD = "forgotten-as-held"
    OLDER_GOES_ON = "older-goes-on"

    @property
    def text(self) -> str:
        """In words."""
        return _TEXTS[self]


_TEXTS = {
    Defect.RUNS_BEFORE_CLAIM: "a destination runs the guest when HANDOVER comes, and claims afterwards",
    Defect.RESUMES_ON_TIMEOUT: "a source that hears nothing after HANDOVER lets its guest run on",
    Defect.EPOCH_REUSED: "a source runs a guest that was handed back under the epoch that it had granted",
    Defect.START_NOT_WRITTEN: "a destination runs the guest without START",
    Defect.ABSENT_IS_LOST: "a source takes an empty slot for a claim that the destination has not made",
    Defect.FREED_ON_LOST_CLAIM: "a source that has lost its claim frees its image",
    Defect.OLD_CONTROLLER: "a new endpoint takes the records over while the old one is only frozen",
    Defect.PAGES_FREED: "a source frees its image as soon as the guest runs, though pages follow it",
    Defect.INSTALLED_TWICE: "a destination installs pages again that the guest may have written meanwhile",
    Defect.TAKEN_UP_UNASKED: "a source that is started again takes its session up, whosever the guest is",
    Defect.NUMBERS_REUSED: "a source that is started again numbers connections as the one before it",
    Defect.OPENING_FORGOTTEN: "a destination that is started again knows no session whose guest lacks pages",
    Defect.BITS_IGNORED: "a destination that is started again fetches what was installed before, too",
    Defect.ALL_TAKEN_AS_INSTALLED: "a destination that is started again takes all pages for installed",
    Defect.TAKEN_FOR_NEW: "a destination that is started again takes memory for new that has old pages",
    Defect.FORGOTTEN_AS_HELD: "a destination that is started again says that it has a round that it has not",
    Defect.OLDER_GOES_ON: "a destination lets a session in while an older one of its guest goes on",
}
