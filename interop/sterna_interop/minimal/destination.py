"""The destination: takes a guest in (8, 10, 11). The state of its machine is the place in the code."""

from __future__ import annotations

import secrets
from typing import Any, Final

from sterna_interop.minimal import checks
from sterna_interop.minimal.checks import LIMIT_IDS, RAW, require
from sterna_interop.minimal.codes import NUMBERS, SessionError
from sterna_interop.minimal.connection import Connection, Frame
from sterna_interop.minimal.image import Entries, Section, chunks, pages, state_digest

VERSION: Final = 1 << 16 | 1
STOP_AND_COPY, HASHES, ZEROS = 1, 16, 32
HOST: Final = "minimal-destination"
KNOWN_STATE: Final = {(0, 3, 1)}  # architecture, kind, version: opaque state of a synthetic guest

Fields = dict[str, Any]


def identity(fields: Fields) -> tuple[int, int, int, int, int]:
    """What tells state sections apart."""
    kind, vcpu, version, instance = (fields[name] for name in ("kind", "vcpu", "version", "instance"))
    return fields["architecture"], kind, vcpu, version, instance


class Destination:
    """One session.

    Attributes:
        memory: of the copied regions; empty until there is room for the guest, and when it was freed.
        sections: the state, when it was loaded.
        running: the guest runs here.
        released: the source has let go of its image.
    """

    def __init__(self, connection: Connection, order: Fields, limits: dict[str, int]) -> None:
        self.memory: dict[int, bytearray] = {}
        self.sections: list[Section] | None = None
        self.running = self.released = False
        self.epoch = 0
        self.digest = b""
        self.rounds = 0
        self.refusing = False  # an error is answered with REFUSE (CON-11)
        self._line = connection
        self._order = order
        self._limits = limits  # that we state
        self._attempt = 1
        self._round = 0
        self._regions: dict[int, Fields] = {}
        self._guest: Fields = {}
        self._zeros = False
        self._not_ready = order["times"] if order["do"] == "not_ready" else 0

    def run(self) -> None:
        """All of it; SessionError if it ends otherwise."""
        self._line.open()
        self._welcome(self._next("HELLO", reserved=()))
        self._accept(self._next("GUEST", reserved=("ATTACH",)))
        while (frame := self._next("ROUND", "SWITCHOVER")).name == "ROUND" or not self._prepare(frame):
            if frame.name == "ROUND":
                self._receive_round(frame, paused=False)
                self.rounds += 1
        self._receive_round(self._next("ROUND", reserved=("DIRTY_BITMAP",)), paused=True)
        self._load()
        handover = self._next("HANDOVER")
        require(handover.fields["epoch"] == self.epoch, "bad_epoch")
        self._commit()

    def _next(self, *names: str, reserved: tuple[str, ...] = ()) -> Frame:
        """The next frame, in the order of CON-82; frames of an attempt that has ended are passed over."""
        while True:
            frame = self._line.receive()
            if frame.name == "PAGES" and self._regions:
                zero, limits = self._zeros, self._line.limits
                checks.pages(frame.fields, self._regions, limits, frame.bulk_bytes, zero=zero)
            if frame.name == "STATE":
                checks.state(frame.fields)
            attempt = frame.fields.get("attempt", self._attempt)
            if 0 < attempt < self._attempt:
                self._line.read(frame.bulk_bytes)
                continue
            if frame.name == "ROUND" and attempt == self._attempt + 1 and self._regions:
                raise SessionError("unsupported")  # CON-59, reserved
            require(attempt == self._attempt, "bad_attempt")
            if frame.name not in names:
                raise SessionError("unsupported" if frame.name in reserved else "unexpected_frame")
            return frame

    def _welcome(self, frame: Frame) -> None:
        hello = frame.fields
        self.refusing = True
        require(VERSION in {row["version"] for row in hello["versions"]}, "no_common_version")
        if frame.later is not None:
            raise frame.later
        checks.hello_values(hello)
        require(hello["mode"] == 0, "unsupported")
        offered = {row["id"]: row for row in hello["features"]}
        chosen = [number for number in (STOP_AND_COPY, HASHES, ZEROS) if number in offered]
        lacking = [row for row in hello["features"] if row["required"] and row["id"] not in chosen]
        require(not lacking and chosen[:2] == [STOP_AND_COPY, HASHES], "missing_feature")
        self._line.peer_limits = checks.limits_of(hello["limits"])
        self.epoch = hello["epoch"]
        self._zeros = ZEROS in chosen
        self._line.send(
            "WELCOME",
            version=VERSION,
            session=secrets.token_bytes(16),
            token=secrets.token_bytes(32),
            agent="minimal",
            features=[{"id": number} for number in chosen],
            limits=[{"id": LIMIT_IDS[name], "value": value} for name, value in self._limits.items()],
        )
        self.refusing = False
        self._line.greeted = True
        self._line.phase = 2
        self._line.grease()

    def _accept(self, frame: Frame) -> None:
        self._guest = frame.fields
        self.refusing = True
        if self._order["do"] == "refuse":
            raise SessionError(self._order["code"])
        copied = [region for region in self._guest["regions"] if region["transfer"] == checks.COPY]
        for region in copied:
            require(1 << region["granule_log2"] <= self._line.limits["bulk_bytes"], "page_size")
        self._regions = {region["id"]: region for region in self._guest["regions"]}
        self.memory = {region["id"]: bytearray(region["size_bytes"]) for region in copied}
        self._entries = Entries(copied)
        self._pages = sum(map(pages, copied))
        self._line.send("ACCEPT", reserved_bytes=sum(map(len, self.memory.values())))
        self.refusing = False
        self._line.phase = 4

    # ---- rounds ----

    def _receive_round(self, frame: Frame, *, paused: bool) -> None:
        require(frame.fields["round"] == self._round + 1, "bad_round")
        self._round += 1
        count = size = 0
        last: list[Fields] = []
        rejected: list[Fields] = []
        while (frame := self._next("PAGES", "ROUND_END")).name == "PAGES":
            require(frame.fields["round"] == self._round, "bad_round")
            count += sum(run["count"] for run in frame.fields["runs"])
            require(count <= self._pages, "count_mismatch")
            size += frame.bulk_bytes
            last = [{"stream": 0, "sequence": frame.sequence}]
            rejected += self._take(frame.fields, paused=paused)
        end = frame.fields
        require(end["round"] == self._round, "bad_round")
        require((end["pages"], end["bulk_bytes"]) == (count, size), "count_mismatch")
        require(end["streams"] == last, "count_mismatch")
        self._streams = last
        if paused:
            return
        lost = sum(row["count"] for row in rejected)
        require(lost <= max(1024, count // 4), "too_many_rejected")
        require(len(rejected) <= self._line.peer_limits["rejected_runs"], "too_many_rejected")
        rejected.sort(key=lambda row: (row["region"], row["first"]))
        self._line.send(
            "ROUND_ACK", attempt=self._attempt, round=self._round, pages=count - lost, rejected=rejected
        )

    def _take(self, table: Fields, *, paused: bool) -> list[Fields]:
        """Put a batch into memory, verified; the ranges that were rejected (CON-35, CON-47)."""
        region = self._regions[table["region"]]
        number, shift = region["id"], region["granule_log2"]
        memory, hashes, rejected = self.memory[number], iter(table["hashes"]), []
        for run in table["runs"]:
            first, size = run["first"], run["count"] << shift
            if run["encoding"] != RAW:
                memory[first << shift : (first << shift) + size] = bytes(size)
                self._entries.zero(number, first, run["count"])
                continue
            for begin, count, piece, value in chunks(first, self._line.read(size), shift):
                memory[begin << shift : (begin << shift) + len(piece)] = piece
                if value == next(hashes)["hash"]:
                    self._entries.chunk(number, begin, count, value)
                    continue
                require(not paused, "page_hash")
                self._entries.drop(number, begin, count)
                rejected.append({"region": number, "first": begin, "count": count})
        return rejected

    # ---- switchover ----

    def _prepare(self, frame: Frame) -> bool:
        """Answer SWITCHOVER; whether with READY."""
        require(frame.fields["style"] == 0, "not_selected")
        if self._not_ready:
            self._not_ready -= 1
            self._line.send("NOT_READY", attempt=self._attempt, code=NUMBERS["not_ready"], text="as ordered")
            self._attempt += 1
            return False
        self._line.phase = 6
        self._line.send("READY", attempt=self._attempt)
        return True

    def _load(self) -> None:
        """The state, SEAL, and what has to be compared (CON-50)."""
        sections: list[Section] = []
        begun: Fields | None = None
        while (frame := self._next("STATE", "SEAL", reserved=("DIRTY_BITMAP",))).name == "STATE":
            begun = self._fragment(frame.fields, begun, sections)
        seal = frame.fields
        require(seal["streams"] == self._streams, "count_mismatch")
        require(begun is None and seal["state_sections"] == len(sections), "count_mismatch")
        require(seal["state_bytes"] == sum(len(section.data) for section in sections), "count_mismatch")
        self.digest = self._entries.digest()
        require(seal["digest"] == self.digest, "digest_mismatch")
        require(self._entries.complete, "digest_mismatch")  # MEM-11: equal digests may both lack a page
        require(seal["state_digest"] == state_digest(sections), "digest_mismatch")
        known = {(one.architecture, one.kind, one.version) for one in sections} <= KNOWN_STATE
        require(known, "unknown_state")
        require(self._order["do"] != "reject_state", "state_rejected")
        self.sections = sections
        self._line.send("LOADED", attempt=self._attempt, digest=self.digest)

    def _fragment(self, fields: Fields, begun: Fields | None, sections: list[Section]) -> Fields | None:
        """STA-1 and STA-5 to STA-9; the section that is not complete yet."""
        if begun is None:
            require(fields["offset"] == 0, "bad_fragment")
            total = sum(len(section.data) for section in sections) + fields["total_bytes"]
            require(total <= self._guest["state_bytes"], "limit_state")
            require(len(sections) < self._line.limits["state_sections"], "limit_state")
            begun = {**fields, "data": b""}
        else:
            same = identity(fields) == identity(begun) and fields["total_bytes"] == begun["total_bytes"]
            require(same and fields["offset"] == len(begun["data"]), "bad_fragment")
        begun["data"] += fields["data"]
        section = Section(*identity(fields), begun["data"])
        require(section.identity not in {one.identity for one in sections}, "bad_fragment")
        require(section.vcpu < self._guest["vcpus"] or section.vcpu == (1 << 32) - 1, "bad_value")
        if not fields["last"]:
            return begun
        sections.append(section)
        return None

    def _commit(self) -> None:
        """From here on nothing that the peer does or says takes the permission back (ONE-30)."""
        runner = secrets.token_bytes(16)
        self.running = True
        self.epoch += 1
        self._line.phase = 8
        self._line.send("RUNNING", epoch=self.epoch, runner=runner, runner_host=HOST)
        self._line.send("COMPLETE", epoch=self.epoch, digest=self.digest)
        require(self._next("RELEASE").fields["epoch"] == self.epoch, "bad_epoch")
        self.released = True
        self._next("BYE")
        self._line.send("BYE")
