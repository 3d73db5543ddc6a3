"""The source: sends a guest away (8, 10, 11). The state of its machine is the place in the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sterna_interop.minimal import checks
from sterna_interop.minimal.checks import LIMIT_IDS, RAW, ZERO, require
from sterna_interop.minimal.codes import SessionError, from_peer
from sterna_interop.minimal.connection import Connection, Frame
from sterna_interop.minimal.destination import HASHES, STOP_AND_COPY, VERSION, ZEROS
from sterna_interop.minimal.image import Entries, Guest, chunks, pages, state_digest

BATCH_BYTES: Final = 256 * 1024
FRAGMENT_BYTES: Final = 32 * 1024
NOT_READY_MAX: Final = 8  # CON-43

Fields = dict[str, Any]
Page = tuple[int, int]


class Source:
    """One session.

    Attributes:
        paused: the guest stands still.
        granted: HANDOVER may have left (ONE-19).
        moved: RUNNING has come.
        released: COMPLETE has come, and was right.
    """

    def __init__(self, connection: Connection, told: Fields) -> None:
        self.guest = Guest(told["guest"])
        self.paused = self.granted = self.moved = self.released = False
        self.digest = b""
        self.rounds = 0
        self._line = connection
        self._told = told
        self._attempt = 1
        self._round = 0
        self._zeros = False
        self._entries = Entries(list(self.guest.regions.values()))

    def run(self) -> None:
        """All of it; SessionError if it ends otherwise."""
        self._line.open()
        self._hello()
        self._describe()
        self._cancel_if_ordered()
        dirty = {(number, page) for number, one in self.guest.regions.items() for page in range(pages(one))}
        for _ in range(max(1, self._told["order"]["rounds"])):
            dirty = self._round_of(dirty)
        while not self._switchover():
            dirty |= self._collect()
        while self.guest.write():
            pass
        self.paused = True
        self._line.phase = 6
        self._seal(dirty | self.guest.collect())
        self._handover()

    def _next(self, *names: str, reserved: tuple[str, ...] = ()) -> Frame:
        """The next frame, in the order of CON-82; frames of an attempt that has ended are passed over."""
        while True:
            frame = self._line.receive()
            attempt = frame.fields.get("attempt", self._attempt)
            if 0 < attempt < self._attempt:
                continue
            require(attempt == self._attempt, "bad_attempt")
            if frame.name == "REFUSE" and "REFUSE" in names:
                raise from_peer(frame.fields["code"])
            if frame.name not in names:
                raise SessionError("unsupported" if frame.name in reserved else "unexpected_frame")
            return frame

    # ---- handshake ----

    def _hello(self) -> None:
        told, offered = self._told, (STOP_AND_COPY, HASHES, ZEROS)
        self._line.send(
            "HELLO",
            versions=[{"version": VERSION}],
            features=[{"id": number, "required": number != ZEROS} for number in offered],
            limits=[{"id": LIMIT_IDS[name], "value": value} for name, value in told["limits"].items()],
            epoch=told["epoch"],
            guest=bytes.fromhex(told["guest"]["id"]),
            runner=bytes.fromhex(told["runner"]["id"]),
            runner_host=told["runner"]["host"],
            agent="minimal",
        )
        welcome = self._next("WELCOME", "REFUSE").fields
        checks.welcome(welcome)
        require(welcome["version"] == VERSION, "unsolicited")
        chosen = {row["id"]: row["parameter"] for row in welcome["features"]}
        require(chosen.keys() <= set(offered) and not any(chosen.values()), "unsolicited")
        require({STOP_AND_COPY, HASHES} <= chosen.keys(), "missing_feature")
        self._zeros = ZEROS in chosen
        self._line.peer_limits = checks.limits_of(welcome["limits"])
        self._line.greeted = True
        self._line.phase = 2

    def _describe(self) -> None:
        guest, limits = self._told["guest"], self._line.peer_limits
        regions = guest["regions"]
        fits = (
            len(regions) <= limits["regions"]
            and sum(region["size_bytes"] for region in regions) <= limits["memory_bytes"]
            and guest["state_bytes"] <= limits["state_bytes"]
            and len(guest["sections"]) <= limits["state_sections"]
            and all(1 << region["granule_log2"] <= limits["bulk_bytes"] for region in regions)
        )
        require(fits, "limit_mismatch")
        self._line.send(
            "GUEST",
            architecture=guest["architecture"],
            vcpus=guest["vcpus"],
            state_bytes=guest["state_bytes"],
            name=guest["name"],
            regions=regions,
        )
        self._line.regions = {region["id"]: region for region in regions}
        self._line.grease()
        accept = self._next("ACCEPT", "REFUSE").fields
        require(accept["data_streams"] == 0, "not_selected")
        require(accept["reserved_bytes"] >= sum(map(len, self.guest.memory.values())), "bad_value")
        self._line.phase = 4

    # ---- rounds ----

    def _round_of(self, dirty: set[Page]) -> set[Page]:
        """Send these pages; those that are dirty afterwards."""
        count = self._send_round(dirty)
        ack = self._next("ROUND_ACK").fields
        require(ack["round"] == self._round, "bad_round")
        rejected = set()
        for row in ack["rejected"]:
            require(row["region"] in self.guest.regions, "outside_region")
            rejected |= {(row["region"], row["first"] + place) for place in range(row["count"])}
            self._entries.drop(row["region"], row["first"], row["count"])
        require(rejected <= dirty, "count_mismatch")
        require(ack["pages"] == count - len(rejected), "count_mismatch")
        require(len(rejected) <= max(1024, count // 4), "too_many_rejected")
        self.rounds += 1
        self._cancel_if_ordered()
        self.guest.write()
        return rejected | self.guest.collect()

    def _collect(self) -> set[Page]:
        self.guest.write()
        return self.guest.collect()

    def _cancel_if_ordered(self) -> None:
        order = self._told["order"]
        if order["do"] == "cancel" and order["round"] == self.rounds:
            raise SessionError("cancelled")

    def _send_round(self, dirty: set[Page]) -> int:
        self._round += 1
        self._line.send("ROUND", attempt=self._attempt, round=self._round, pages=len(dirty))
        size, self._streams = 0, []
        for region, table, parts in self._batches(dirty):
            self._line.attend()
            sequence = self._line.send(
                "PAGES", parts, attempt=self._attempt, round=self._round, region=region, **table
            )
            size += sum(map(len, parts))
            self._streams = [{"stream": 0, "sequence": sequence}]
        self._line.send(
            "ROUND_END",
            attempt=self._attempt,
            round=self._round,
            pages=len(dirty),
            bulk_bytes=size,
            streams=self._streams,
        )
        return len(dirty)

    def _batches(self, dirty: set[Page]) -> Iterator[tuple[int, Fields, list[bytes]]]:
        """Region, table and bytes of one PAGES frame after the other, within the peer's limits."""
        limits = self._line.peer_limits
        most, runs_max = min(BATCH_BYTES, limits["bulk_bytes"]), min(512, limits["batch_runs"])
        for number, region in sorted(self.guest.regions.items()):
            shift = region["granule_log2"]
            runs: list[Fields] = []
            taken = 0
            for page in sorted(page for one, page in dirty if one == number):
                zero = self._zeros and not any(self._bytes(number, page, 1, shift))
                encoding = ZERO if zero else RAW
                if taken + (1 << shift) > most:
                    yield number, *self._table(number, runs, shift)
                    runs, taken = [], 0
                last = runs[-1] if runs else None
                if last and last["first"] + last["count"] == page and last["encoding"] == encoding:
                    last["count"] += 1
                else:
                    if len(runs) == runs_max:
                        yield number, *self._table(number, runs, shift)
                        runs, taken = [], 0
                    runs.append({"first": page, "count": 1, "encoding": encoding})
                taken += 1 << shift
            if runs:
                yield number, *self._table(number, runs, shift)

    def _table(self, number: int, runs: list[Fields], shift: int) -> tuple[Fields, list[bytes]]:
        parts, hashes = [], []
        for run in runs:
            if run["encoding"] == ZERO:
                self._entries.zero(number, run["first"], run["count"])
                continue
            data = self._bytes(number, run["first"], run["count"], shift)
            run["size_bytes"] = len(data)
            parts.append(data)
            for first, count, _, value in chunks(run["first"], data, shift):
                self._entries.chunk(number, first, count, value)
                hashes.append({"hash": value})
        return {"runs": runs, "hashes": hashes}, parts

    def _bytes(self, number: int, first: int, count: int, shift: int) -> bytes:
        return bytes(self.guest.memory[number][first << shift : (first + count) << shift])

    # ---- switchover ----

    def _switchover(self) -> bool:
        """Ask; whether the destination is ready."""
        self._line.phase = 5
        self._line.send("SWITCHOVER", attempt=self._attempt)
        answer = self._next("READY", "NOT_READY")
        if answer.name == "READY":
            return True
        self._attempt += 1
        require(self._attempt <= NOT_READY_MAX, "not_ready")
        return False

    def _seal(self, dirty: set[Page]) -> None:
        """The blackout: last pages, state, and both digests (CON-44)."""
        self._send_round(dirty)
        sections = self.guest.sections
        for section in sections:
            names = ("architecture", "kind", "vcpu", "version", "instance")
            total = len(section.data)
            for offset in range(0, max(1, total), FRAGMENT_BYTES):
                data = section.data[offset : offset + FRAGMENT_BYTES]
                self._line.send(
                    "STATE",
                    attempt=self._attempt,
                    **{name: getattr(section, name) for name in names},
                    total_bytes=total,
                    offset=offset,
                    last=offset + len(data) == total,
                    data=data,
                )
        self.digest = self._entries.digest()
        self._line.send(
            "SEAL",
            attempt=self._attempt,
            algorithm=3,
            state_sections=len(sections),
            state_bytes=sum(len(section.data) for section in sections),
            digest=self.digest,
            state_digest=state_digest(sections),
            streams=self._streams,
        )

    def _handover(self) -> None:
        loaded = self._next("LOADED").fields
        require(loaded["digest"] == self.digest, "digest_mismatch")
        epoch = self._told["epoch"]
        self._line.phase = 7
        self.granted = True
        self._line.send("HANDOVER", attempt=self._attempt, epoch=epoch)
        running = self._next("RUNNING", reserved=("HANDBACK", "VERDICT")).fields
        require(running["epoch"] == epoch + 1, "bad_epoch")
        self.moved = True
        self._line.phase = 8
        complete = self._next("COMPLETE", reserved=("PAGE_REQUEST",)).fields
        require(complete["epoch"] == epoch + 1, "bad_epoch")
        require(complete["digest"] == self.digest, "memory_mismatch")
        self.released = True
        self._line.send("RELEASE", epoch=epoch + 1)
        self._line.send("BYE")
        self._next("BYE")
