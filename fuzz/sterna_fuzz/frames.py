"""The target `frames`: properties of bytes, records and machines that hear what nobody should say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from sterna.registry import FrameType
from sterna.testing import strategies
from sterna_fuzz import bodies, edges, peers, streams
from sterna_fuzz.conversations import SOURCE
from sterna_fuzz.mutators import MUTATORS
from sterna_fuzz.plans import fields, plans
from sterna_fuzz.target import Given, Property, Target

# Sizes of pieces, over and over: byte by byte, and at the borders of preface and header.
MARKS: Final = st.sampled_from(((1,), (16, 32), (1, 15, 31, 1), (7,), (4096,))) | st.lists(
    st.integers(1, 5000), min_size=1, max_size=12
).map(tuple)
_SKIPPED: Final = ("unknown", "grease_flood", "unknown_flood", "unknown_critical")


def properties(mutators: Sequence[str]) -> list[Property]:
    """The properties; plans use these mutators, all of them if there are none."""
    skipped = [name for name in _SKIPPED if name in (mutators or MUTATORS)] or mutators
    return [
        Given(
            "round-trip",
            "round-trip",
            "a record that is encoded and decoded is the same",
            {"record": strategies.records()},
            bodies.check_round_trip,
            weight=3,
        ),
        Given(
            "frame",
            "chunking",
            "a frame comes out of a reader as it went in, however it is cut",
            {"record": strategies.records(), "marks": MARKS},
            bodies.check_frame,
            weight=2,
        ),
        Given(
            "body",
            "round-trip",
            "a body is refused with a code, or is the only body of its record",
            {"record": strategies.records(), "patches": st.lists(bodies.patches(), min_size=1, max_size=3)},
            bodies.check_patched,
            weight=8,
        ),
        Given(
            "bytes",
            "coded-refusal",
            "any bytes are a body, or are refused with a code",
            {"frame": st.sampled_from(FrameType), "body": st.binary(max_size=400)},
            bodies.check_body,
            weight=2,
        ),
        Given(
            "edge",
            "bounded",
            "what is as large as a limit is taken, one more is refused with the limit's code",
            {"name": st.sampled_from(sorted(edges.EDGES)), "size": st.integers(0, 1000)},
            edges.check_edge,
            weight=2,
        ),
        Given(
            "refusal",
            "coded-refusal",
            "a spoilt stream is read, or ends in the coded error that it must end in",
            {"plan": plans(mutators)},
            streams.check_refusal,
            weight=6,
        ),
        Given(
            "chunking",
            "chunking",
            "the same bytes cut in any way give the same events and the same error",
            {"plan": plans(mutators), "marks": MARKS},
            streams.check_chunking,
            weight=3,
        ),
        Given(
            "skipping",
            "skips-unknown",
            "unknown frames change nothing, unknown critical ones end the session",
            {"plan": plans(skipped, most=1)},
            streams.check_skipping,
            weight=2,
        ),
        Given(
            "machine",
            "rollback",
            "whatever a machine hears: one coded end, and the guest where it belongs",
            {"plan": plans(mutators)},
            peers.check_machine,
            weight=8,
        ),
        Given(
            "grounds",
            "same-memory",
            "a machine goes on only if what it is told is right: every field of every frame",
            {"plan": fields()},
            peers.check_machine,
            weight=8,
        ),
        Given(
            "pages",
            "no-stale-page",
            "page bytes that were damaged on their way are never run with",
            {"plan": plans(["flip_bulk"], sides=[SOURCE], most=2)},
            peers.check_machine,
            weight=2,
        ),
        Given(
            "packed",
            "same-memory",
            "pages that come packed, right or wrong, are those of the pause, or the session ends",
            {"plan": plans(["pack", "pack_flip"], scripts=["packed"], sides=[SOURCE], most=2)},
            peers.check_machine,
            weight=3,
        ),
        Given(
            "machine-chunking",
            "chunking",
            "a machine says and does the same, however the bytes are cut",
            {"plan": plans(mutators), "marks": MARKS},
            peers.check_pieces,
            weight=2,
        ),
        Given(
            "machine-skipping",
            "skips-unknown",
            "unknown frames change nothing of what a machine says and does",
            {"plan": plans(skipped, most=1)},
            peers.check_skipped,
            weight=2,
        ),
        Given(
            "bounded",
            "bounded",
            "a destination holds no more than it has announced",
            {"plan": plans(mutators, sides=[SOURCE])},
            peers.check_held,
        ),
    ]


TARGET: Final = Target(
    "frames",
    "bytes, records, and machines that hear what nobody should say",
    properties,
    {name: f"{each.text} ({each.attacks})" for name, each in MUTATORS.items()},
)
