"""What a source keeps of a guest that it hands over, made up."""

from __future__ import annotations

from sterna.core.carry import Ticket
from sterna.core.departure import Departure
from sterna.core.image_notes import ImageNotes
from sterna.core.negotiate import VERSIONS, check_welcome, offer
from sterna.limits import Limits
from sterna.memory.digest import MemoryDigest
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Feature, Mode, Style
from sterna.wire.records import FeatureChoice, Hello, Runner, Welcome

SESSION, TOKEN = b"s" * 16, b"t" * 32


def departure(table: RegionTable, style: Style = Style.POST_COPY, resume_s: int = 1) -> Departure:
    """Of a session whose guest lacks all of its pages, unless it was stopped and copied."""
    features = offer(more={Feature.RESUME: resume_s, Feature.DATA_STREAMS: 2})
    limits = Limits().to_wire()
    runner = Runner("host-a", b"r" * 16)
    hello = Hello(Mode.OPEN, VERSIONS, features, limits, bytes(range(16)), 1, runner, "test")
    chosen = tuple(FeatureChoice(each.id, each.parameter) for each in features)
    welcome = Welcome(VERSIONS[0], SESSION, TOKEN, chosen, limits, "test")
    ticket = Ticket(hello, welcome, check_welcome(hello, welcome), streams=2)
    stale = PageSets(table) if style is Style.STOP_AND_COPY else PageSets.full(table)
    return Departure(ticket, ImageNotes(MemoryDigest(table), stale, 1, 1, style, b"d" * 16))
