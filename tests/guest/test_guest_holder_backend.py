"""A backend of a few lines, which shows what one needs; the tests of the protocol run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.holder_backend import HeldGuest, HeldState
from sterna.guest.holder_frames import JsonObject
from sterna.guest.late_pages import LatePages
from sterna.linux.memfd import PAGE_BYTES, MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, StateKind
from sterna.wire.records import Region, Runner

PAGES = 70  # more than a word of bitmap, and not whole words
STATE = (StateSection(StateKind.OPAQUE, 1, b"registers"), StateSection(StateKind.OPAQUE, 1, b"", instance=1))
DESCRIPTION = GuestDescription(
    bytes(range(16)), "fake", (Region(3, 1 << 63, PAGES * PAGE_BYTES), Region(5, 0, 2 * PAGE_BYTES))
)


class FakeHeld(HeldGuest):
    """Does nothing and remembers what it was told.

    Attributes:
        calls: names of the methods that would change something, in order.
        dirty: what the next collect reports of region 3.
        broken: names of methods that fail, with what.
        stale: the pages that were expected last.
        late: what holds accesses to them, if a test wants something to.
    """

    kind = "fake"
    tracker = "told"
    can_post_copy = True

    def __init__(self, *, with_guest: bool = True) -> None:
        self.calls: list[str] = []
        self.dirty: set[int] = set()
        self.broken: dict[str, Exception] = {}
        self.running = with_guest
        self.share = 0.0
        self.stale: Mapping[int, PageBitmap] = {}
        self.late: LatePages | None = None
        self._files: dict[int, MemoryFile] = {}
        self._description: GuestDescription | None = None
        if with_guest:
            self._make(DESCRIPTION)

    def _make(self, description: GuestDescription) -> None:
        self._description = description
        self._files = {region.id: MemoryFile("fake", region.size_bytes) for region in description.regions}

    def _free(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]

    @property
    def description(self) -> GuestDescription:
        assert self._description is not None
        return self._description

    def memory(self) -> Mapping[int, MemoryFile]:
        return self._files

    def start_tracking(self) -> None:
        self._call("start_tracking")

    def collect(self) -> Mapping[int, PageBitmap]:
        self._call("collect")
        bitmap = PageBitmap(PAGES)
        for page in self.dirty:
            bitmap.set(page)
        self.dirty.clear()
        return {3: bitmap}

    def stop_tracking(self) -> None:
        self._call("stop_tracking")

    def pause(self) -> None:
        self._call("pause")
        self.running = False

    def resume(self) -> None:
        self._call("resume")
        self.running = True

    def throttle(self, share: float) -> None:
        self._call("throttle")
        self.share = share

    def save_state(self) -> Sequence[StateSection]:
        self._call("save_state")
        return STATE

    def mark_granted(self, epoch: int) -> None:
        self._call("mark_granted")

    def revoke_grant(self, epoch: int) -> None:
        self._call("revoke_grant")

    def reserve(self, description: GuestDescription) -> None:
        self._call("reserve")
        self._make(description)

    def prepare(self) -> None:
        self._call("prepare")

    def load_state(self, sections: Sequence[StateSection]) -> None:
        self._call("load_state")
        if tuple(sections) != STATE:
            raise GuestError("another state", ErrorCode.STATE_REJECTED)

    def run(self, epoch: int, runner: Runner) -> None:
        self._call("run")
        self.running = True

    def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        self._call("expect")
        self.stale = stale

    @property
    def late_pages(self) -> LatePages | None:
        return self.late

    def discard(self) -> None:
        self._call("discard")
        self._free()

    def release(self) -> None:
        self._call("release")
        self._free()

    def status(self) -> JsonObject:
        return {"figure": 42, "word": "text"}

    def audit(self) -> JsonObject:
        self._call("audit")
        return {"errors": 0}

    def close(self) -> None:
        self._call("close")
        self._free()


def test_a_backend_has_to_do_everything() -> None:
    with pytest.raises(TypeError):
        HeldGuest()  # type: ignore[abstract]
    fake = FakeHeld()
    assert sum(file.size_bytes for file in fake.memory().values()) == (PAGES + 2) * PAGE_BYTES
    fake.close()
    assert fake.calls == ["close"]


def test_a_backend_that_says_nothing_of_it_runs_with_all_of_its_pages() -> None:
    fake = FakeHeld()
    assert not HeldGuest.can_post_copy.fget(fake)
    assert HeldGuest.late_pages.fget(fake) is None
    HeldGuest.complete(fake)
    with pytest.raises(GuestError) as caught:
        HeldGuest.expect(fake, {})
    assert caught.value.code is ErrorCode.UNSUPPORTED
    fake.close()


def test_states_are_the_words_of_the_protocol() -> None:
    words = ["empty", "reserved", "loaded", "running", "paused", "granted", "released"]
    assert [str(state) for state in HeldState] == words
