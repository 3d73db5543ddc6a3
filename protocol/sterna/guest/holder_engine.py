"""The holder protocol's rules: which operation is legal when, for whom, and what it does.

One engine holds one guest. It has no sockets: `HolderServer` feeds it requests of a `Party` (an attached
connection) and sends what it answers. Section numbers are those of spec/holder.md.

Two laws stand above the operations. A paused guest whose controller is gone runs on by itself, because it
belongs here until it was granted [HOL-18]; a granted one never does, because it may run elsewhere by now
[HOL-19]. And an epoch older than the newest that the holder knows may look, never run [HOL-13].
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sterna.errors import GuestError
from sterna.guest import holder_fields as fields_of
from sterna.guest.holder_backend import HeldGuest, HeldState
from sterna.guest.holder_bitmaps import BitmapFile, bitmap_bytes, read_bitmaps
from sterna.guest.holder_frames import VERSION, Frame, Json, JsonObject
from sterna.guest.stale_pages import notes_limit
from sterna.linux.memfd import MemoryFile, read_shared
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import NO_ID, NO_RUNNER, Runner

_S: Final = HeldState
_WITH_GUEST: Final = frozenset(_S) - {_S.EMPTY, _S.RELEASED}
_HERE: Final = frozenset({_S.RUNNING, _S.PAUSED})
_WAITING: Final = frozenset({_S.RESERVED, _S.LOADED})


@dataclass(slots=True)
class Party:
    """Who sends a request: an attached connection.

    Attributes:
        controller: may change something; others may ask for description and status.
        may_run: its epoch is the newest that the holder knows.
    """

    controller: bool = False
    may_run: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send back. Descriptors stay the engine's, except those in `closing`, closed once sent."""

    fields: JsonObject
    descriptors: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table of operations.

    Attributes:
        states: where it is legal.
        run_right: only for a controller that `may_run`.
        observer: legal for observers too.
        descriptors: how many must come with it.
        complete: only of a guest that has all of its pages [HOL-43].
    """

    act: Callable[[HolderEngine, Frame], Answer]
    states: frozenset[HeldState] = frozenset(_S)
    run_right: bool = True
    observer: bool = False
    descriptors: int = 0
    complete: bool = False


class HolderEngine:
    """The rules around one held guest.

    Attributes:
        state: where the guest is.
        epoch: under which it last ran here; 0 if it never did.
        granted_epoch: that was granted to another host; 0 if none.
        image: the id of what is kept; zeros for nothing. A guest that runs already gets a random one.
        ending: a controller asked for the holder's end.
    """

    def __init__(
        self,
        guest: HeldGuest,
        *,
        state: HeldState = HeldState.EMPTY,
        epoch: int = 0,
        runner: Runner = NO_RUNNER,
    ) -> None:
        self.guest = guest
        self.state = state
        self.epoch = epoch
        self.runner = runner
        self.granted_epoch = 0
        self.image = NO_ID if state is HeldState.EMPTY else secrets.token_bytes(len(NO_ID))
        self.ending = False
        self._asking = Party()  # who sent the request that is being answered
        self._granter: Party | None = None
        self._tracking = False
        self._bitmaps: BitmapFile | None = None
        self._notes: MemoryFile | None = None

    @property
    def missing(self) -> int:
        """Stale pages of the guest that were not installed yet."""
        late = self.guest.late_pages
        return 0 if late is None else late.missing()

    @property
    def newest_epoch(self) -> int:
        """The newest epoch that this holder knows of."""
        return max(self.epoch, self.granted_epoch)

    def attach(self, frame: Frame, party: Party) -> Answer:
        """A connection's first operation, apart from being the only controller, which the server sees to."""
        fields = frame.fields
        version = fields_of.integer(fields, "version")
        if version != VERSION:
            raise GuestError(f"holder protocol {version}, this is {VERSION}", ErrorCode.NO_COMMON_VERSION)
        role = fields_of.text(fields, "role")
        if role not in {"controller", "observer"}:
            raise fields_of.bad_value("role: neither controller nor observer")
        # Who states no epoch knows of none newer than the one under which the guest ran here.
        epoch = fields_of.integer(fields, "epoch") if "epoch" in fields else self.epoch
        party.controller = role == "controller"
        party.may_run = party.controller and epoch >= self.newest_epoch
        answer: JsonObject = {
            "version": VERSION,
            "kind": self.guest.kind,
            "rights": "run" if party.may_run else "read",
            **self._where(),
        }
        return Answer(answer)

    def request(self, name: str, frame: Frame, party: Party) -> Answer:
        """Do an operation of an attached party.

        Raises:
            GuestError: it was refused or failed; the guest is as before.
        """
        operation = OPERATIONS.get(name)
        if operation is None:
            reserved = " yet" if name in RESERVED_OPERATIONS else ""
            raise GuestError(f"operation {name!r} is not known here{reserved}", ErrorCode.UNSUPPORTED)
        if not party.controller and not operation.observer:
            raise GuestError("observers may only look", ErrorCode.NOT_AUTHORISED)
        if operation.run_right and not party.may_run:
            raise GuestError(f"the newest epoch is {self.newest_epoch}", ErrorCode.STALE_EPOCH)
        if self.state not in operation.states:
            late = self.state in {_S.GRANTED, _S.RELEASED}
            code = ErrorCode.TOO_LATE if late else ErrorCode.UNEXPECTED_FRAME
            raise GuestError(f"{name}: the guest is {self.state}", code)
        if operation.complete and self.missing:
            raise GuestError(f"{name}: {self.missing} pages of the guest are missing", ErrorCode.NOT_READY)
        if len(frame.descriptors) != operation.descriptors:
            raise fields_of.bad_value(f"{name}: takes {operation.descriptors} descriptors")
        self._asking = party
        return operation.act(self, frame)

    def controller_gone(self) -> None:
        """The controller has ended or closed its connection: back to a guest that nobody migrates.

        Raises:
            GuestError: of the guest; everything has been tried all the same.
        """
        self._tracking = False
        # The last one first, and each of them even if another fails.
        with contextlib.ExitStack() as stack:
            if self.state is _S.PAUSED:  # [HOL-18]; GRANTED and LOADED stay as they are [HOL-19] [HOL-20]
                stack.callback(self._resume, Frame({}))
            if self.state in _HERE | {_S.GRANTED}:
                stack.callback(self.guest.throttle, 0.0)
                stack.callback(self.guest.stop_tracking)
            stack.callback(self._settle)  # [HOL-42]

    def close(self) -> None:
        """End the guest and free everything."""
        self._drop_bitmaps()
        self._drop_notes()
        self.guest.close()

    def _where(self) -> JsonObject:
        return {
            "state": str(self.state),
            "epoch": self.epoch,
            "granted_epoch": self.granted_epoch,
            "runner": fields_of.runner_to_json(self.runner),
            "image": self.image.hex(),
            "tracker": self.guest.tracker,
            "tracking": self._tracking,
            "post_copy": self.guest.can_post_copy,
            "missing": self.missing,
        }

    # Operations, in the order of section 5.

    def _describe(self, _: Frame) -> Answer:
        return Answer({"description": fields_of.description_to_json(self.guest.description)})

    def _memory(self, _: Frame) -> Answer:
        writable = self.state in _WAITING or self.missing > 0  # [HOL-33]
        files = sorted(self.guest.memory().items())
        regions: list[Json] = [{"region": region, "bytes": file.size_bytes} for region, file in files]
        fields: JsonObject = {"writable": writable, "regions": regions}
        if writable:
            return Answer(fields, tuple(file.fileno() for _, file in files))
        opened = tuple(file.open_read_only() for _, file in files)
        return Answer(fields, opened, opened)

    def _track_start(self, _: Frame) -> Answer:
        self.guest.stop_tracking()
        self._tracking = False
        if self._bitmaps is None:
            self._bitmaps = BitmapFile(self.guest.description.regions)
        self.guest.start_tracking()
        self._tracking = True
        descriptor = self._bitmaps.file.open_read_only()
        return Answer({"bitmaps": self._bitmaps.layout()}, (descriptor,), (descriptor,))

    def _track_collect(self, _: Frame) -> Answer:
        if not self._tracking or self._bitmaps is None:
            return Answer(
                {"all": True}
            )  # [HOL-35]: what was written before this controller came is not known
        started = time.perf_counter()
        # What a failed collect had already cleared is known to nobody: from then on the answer is all.
        self._tracking = False
        pages = self._bitmaps.put(self.guest.collect())
        self._tracking = True
        return Answer({"all": False, "pages": pages, "seconds": time.perf_counter() - started})

    def _track_stop(self, _: Frame) -> Answer:
        self._tracking = False
        self.guest.stop_tracking()
        return Answer({})

    def _pause(self, _: Frame) -> Answer:
        if self.state is _S.RUNNING:
            self.guest.pause()
            self.state = _S.PAUSED
        return Answer({})

    def _resume(self, _: Frame) -> Answer:
        if self.state is _S.PAUSED:
            self.guest.resume()
            self.state = _S.RUNNING
        return Answer({})

    def _throttle(self, frame: Frame) -> Answer:
        self.guest.throttle(fields_of.number(frame.fields, "share", 0.0, 0.99))
        return Answer({})

    def _save_state(self, _: Frame) -> Answer:
        table, data = fields_of.sections_to_json(self.guest.save_state())
        file = MemoryFile.of_bytes("sterna-state", data)
        descriptor = file.fileno()
        return Answer({"sections": table, "bytes": len(data)}, (descriptor,), (descriptor,))

    def _grant(self, frame: Frame) -> Answer:
        epoch = fields_of.integer(frame.fields, "epoch", 1)
        if self.state is _S.GRANTED and epoch == self.granted_epoch:
            return Answer({})
        if epoch != self.epoch + 1 or self.state is _S.GRANTED:
            raise GuestError(
                f"epoch {epoch} cannot be granted after {self.newest_epoch}", ErrorCode.BAD_EPOCH
            )
        self.guest.mark_granted(epoch)
        self.granted_epoch = epoch
        self.state = _S.GRANTED
        self._granter = self._asking
        return Answer({})

    def _revoke(self, frame: Frame) -> Answer:
        epoch = fields_of.integer(frame.fields, "epoch", 1)
        if self.state is _S.PAUSED:
            return Answer({})
        # Another connection cannot know whether a permission has left the host. [HOL-26]
        if self._granter is not self._asking or epoch != self.granted_epoch:
            raise GuestError(f"epoch {self.granted_epoch} was granted by another", ErrorCode.NOT_AUTHORISED)
        self.guest.revoke_grant(epoch)
        self.granted_epoch = 0
        self.state = _S.PAUSED
        return Answer({})

    def _reserve(self, frame: Frame) -> Answer:
        description = fields_of.description_from_json(fields_of.an_object(frame.fields, "description"))
        image = fields_of.image(frame.fields)
        self.guest.reserve(description)
        self.state, self.image = _S.RESERVED, image
        return Answer({})

    def _prepare(self, _: Frame) -> Answer:
        self.guest.prepare()
        return Answer({})

    def _load_state(self, frame: Frame) -> Answer:
        try:
            data = read_shared(frame.descriptors[0], fields_of.STATE_BYTES)
        except ValueError as error:
            raise fields_of.bad_value(f"load_state: {error}") from error
        self.guest.load_state(fields_of.sections_from_json(frame.fields, data))
        self.state = _S.LOADED
        return Answer({})

    def _run(self, frame: Frame) -> Answer:
        epoch = fields_of.integer(frame.fields, "epoch", 1)
        runner = fields_of.runner_from_json(fields_of.an_object(frame.fields, "runner"))
        if epoch < self.newest_epoch:
            raise GuestError(f"the newest epoch is {self.newest_epoch}", ErrorCode.STALE_EPOCH)
        late = self.guest.late_pages
        if late is not None:
            late.hold()  # here, and not in each guest: none may run before that [HOL-38]
        self.guest.run(epoch, runner)
        self.epoch, self.runner, self.granted_epoch = epoch, runner, 0
        self.state = _S.RUNNING
        return Answer({})

    def _expect(self, frame: Frame) -> Answer:
        try:
            size = bitmap_bytes(self.guest.description.regions)
            words = np.frombuffer(read_shared(frame.descriptors[0], size), "<u8")
            bitmaps = read_bitmaps(frame.fields, words).items()
            stale = {region: PageBitmap.from_words(*bitmap) for region, bitmap in bitmaps}
        except ValueError as error:
            raise fields_of.bad_value(f"expect: {error}") from error
        self.guest.expect(stale)
        return Answer({"missing": self.missing})

    def _faults(self, _: Frame) -> Answer:
        late = self.guest.late_pages
        if late is None:
            return Answer({"regions": []})
        fields: JsonObject = {"regions": late.layout(), "early": late.early_layout()}
        return Answer(fields, (late.uffd.fileno(), late.file.fileno()))

    def _installed(self, _: Frame) -> Answer:
        return Answer({"missing": self._settle()})

    def _settle(self) -> int:
        missing = self.missing
        if not missing:
            self.guest.complete()
        return missing

    def _notes_of(self, frame: Frame) -> Answer:
        if "bytes" in frame.fields:
            size = fields_of.integer(frame.fields, "bytes")
            if size > notes_limit(self.guest.description.regions):
                raise GuestError(f"{size} bytes of notes", ErrorCode.FULL)
            notes = MemoryFile("sterna-notes", size) if size else None
            self._drop_notes()
            self._notes = notes
        if self._notes is None:
            return Answer({"bytes": 0})
        return Answer({"bytes": self._notes.size_bytes}, (self._notes.fileno(),))

    def _discard(self, _: Frame) -> Answer:
        self._drop_bitmaps()
        self.guest.discard()
        self._drop_notes()
        self.state, self.image = _S.EMPTY, NO_ID
        return Answer({})

    def _release(self, _: Frame) -> Answer:
        if self.state is _S.GRANTED:
            self._tracking = False
            self._drop_bitmaps()
            self.guest.release()
            self._drop_notes()
            self.state, self.image = _S.RELEASED, NO_ID
        return Answer({})

    def _drop_bitmaps(self) -> None:
        if self._bitmaps is not None:
            self._bitmaps.close()
            self._bitmaps = None

    def _drop_notes(self) -> None:
        if self._notes is not None:
            self._notes.close()
            self._notes = None

    def _status(self, _: Frame) -> Answer:
        return Answer({**self._where(), "guest": self.guest.status()})

    def _audit(self, _: Frame) -> Answer:
        return Answer({"audit": self.guest.audit()})

    def _shutdown(self, _: Frame) -> Answer:
        self.ending = True
        return Answer({})


_Engine = HolderEngine
OPERATIONS: Final[dict[str, Operation]] = {
    "describe": Operation(_Engine._describe, _WITH_GUEST, run_right=False, observer=True),
    "memory": Operation(_Engine._memory, _WITH_GUEST, run_right=False),
    "track_start": Operation(_Engine._track_start, _HERE, complete=True),
    "track_collect": Operation(_Engine._track_collect, _HERE),
    "track_stop": Operation(_Engine._track_stop),
    "pause": Operation(_Engine._pause, _HERE),
    "resume": Operation(_Engine._resume, _HERE),
    "throttle": Operation(_Engine._throttle, _HERE),
    "save_state": Operation(_Engine._save_state, frozenset({_S.PAUSED}), complete=True),
    "grant": Operation(_Engine._grant, frozenset({_S.PAUSED, _S.GRANTED}), complete=True),
    "revoke": Operation(_Engine._revoke, frozenset({_S.PAUSED, _S.GRANTED})),
    "reserve": Operation(_Engine._reserve, frozenset({_S.EMPTY})),
    "prepare": Operation(_Engine._prepare, _WAITING),
    "load_state": Operation(_Engine._load_state, _WAITING, descriptors=1),
    "run": Operation(_Engine._run, frozenset({_S.LOADED, _S.GRANTED})),
    "expect": Operation(_Engine._expect, _WAITING, descriptors=1),
    "faults": Operation(_Engine._faults, _WITH_GUEST),
    "installed": Operation(_Engine._installed, _WITH_GUEST),
    "notes": Operation(_Engine._notes_of, _WITH_GUEST),
    "discard": Operation(_Engine._discard, _WAITING),
    "release": Operation(_Engine._release, frozenset({_S.GRANTED, _S.RELEASED}), run_right=False),
    "status": Operation(_Engine._status, run_right=False, observer=True),
    "audit": Operation(_Engine._audit, _WITH_GUEST - {_S.RESERVED}, run_right=False),
    "shutdown": Operation(_Engine._shutdown),
}

# Specified by name only; answered with `unsupported`.
RESERVED_OPERATIONS: Final = frozenset({"share", "serve", "storage"})
