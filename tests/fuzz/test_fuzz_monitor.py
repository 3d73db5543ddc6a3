"""A monitor accepts a conversation that keeps the rules, and notices each word that does not."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.limits import Limits
from sterna.registry import Checksum, Encoding, Feature, FrameType, Mode, Phase, Sender, Style
from sterna.wire import make_runs, unchecked
from sterna.wire import records as r
from sterna.wire.header import VERSION
from sterna_fuzz.conversations import DESTINATION, SOURCE
from sterna_fuzz.monitor import Monitor

RUNS = make_runs([(0, 2, Encoding.ZERO)], 12)
HELLO = r.Hello(
    Mode.OPEN,
    (VERSION,),
    (r.FeatureOffer(Feature.PROGRESS, False, 500), r.FeatureOffer(Feature.ENCODING_ZERO, False)),
    {},
    bytes(16),
    5,
    r.NO_RUNNER,
)
WELCOME = r.Welcome(
    VERSION,
    bytes(range(16)),
    bytes(32),
    (r.FeatureChoice(Feature.PROGRESS, 500), r.FeatureChoice(Feature.ENCODING_ZERO)),
    {},
)
PAGES = r.Pages(1, 1, 0, RUNS, np.zeros(0, "<u8"))
# A whole migration. PAGES is frame 3 of the source.
PLAY = (
    (SOURCE, HELLO),
    (DESTINATION, WELCOME),
    (SOURCE, r.Guest("guest", 0, 1, 0, (r.Region(0, 0, 4 * 4096),))),
    (DESTINATION, r.Accept(4 * 4096)),
    (SOURCE, r.Round(1, 1, 1)),
    (SOURCE, PAGES),
    (SOURCE, r.RoundEnd(1, 1, 2, 0, ((0, 3),))),
    (DESTINATION, r.RoundAck(1, 1, 2, 0)),
    (SOURCE, r.Switchover(1, Style.STOP_AND_COPY)),
    (DESTINATION, r.Ready(1)),
    (SOURCE, r.Round(1, 2, 1)),
    (SOURCE, r.RoundEnd(1, 2, 0, 0)),
    (SOURCE, r.Seal(1, Checksum.XXH3_128, bytes(16), bytes(16), 0, 0)),
    (DESTINATION, r.Loaded(1, bytes(16))),
    (SOURCE, r.Handover(1, 5)),
    (DESTINATION, r.Running(6, r.NO_RUNNER)),
    (DESTINATION, r.Complete(6, bytes(16))),
    (SOURCE, r.Release(6)),
    (SOURCE, r.Bye()),
    (DESTINATION, r.Bye()),
)


class Both:
    """Two monitors, and the words of their sides."""

    def __init__(self):
        self.now = 0.0
        self.monitors = {
            SOURCE: Monitor(Sender.SOURCE, Limits(), lambda: self.now),
            DESTINATION: Monitor(Sender.DESTINATION, Limits(), lambda: self.now),
        }
        self.monitors[SOURCE].peer = self.monitors[DESTINATION]
        self.monitors[DESTINATION].peer = self.monitors[SOURCE]
        self.numbers = {SOURCE: 0, DESTINATION: 0}
        for monitor in self.monitors.values():
            monitor.hear(unchecked.preface())

    def say(self, side, *records):
        for record in records:
            frame = unchecked.frame(record.type, unchecked.body(record), sequence=self.numbers[side])
            self.numbers[side] += 1
            self.monitors[side].hear(frame)

    def before(self, kind):
        """Play up to the first frame of a type, without it."""
        for side, record in PLAY:
            if record.type is kind:
                break
            self.say(side, record)
        return self


def test_a_conversation_is_good():
    both = Both().before(None)
    assert both.monitors[SOURCE].said[FrameType.BYE] == both.monitors[DESTINATION].said[FrameType.BYE] == 1


def test_signs_of_life_may_come_whenever_somebody_listens():
    both = Both().before(FrameType.GUEST)
    both.say(SOURCE, r.Ping(1))
    both.say(DESTINATION, r.Pong(1))
    for second in range(3):
        both.now = float(second)
        both.say(SOURCE, r.Progress(Phase.ROUNDS, second, 4, 4, second, 0, 0, 0))


def test_an_attempt_that_fails_is_followed_by_another():
    """[CON-22]"""
    both = Both().before(FrameType.READY)
    both.say(DESTINATION, r.NotReady(1, 1, ""))
    both.say(SOURCE, r.Switchover(2, Style.STOP_AND_COPY))
    both.say(DESTINATION, r.Ready(2))
    both.say(SOURCE, r.Round(2, 2, 0))


WRONG = [
    (FrameType.HELLO, SOURCE, r.Guest("", 0, 1, 0, (r.Region(0, 0, 4096),)), "GUEST behind nothing [CON-3]"),
    (FrameType.HELLO, SOURCE, r.Accept(1), "ACCEPT is not for the source to say"),
    (FrameType.HELLO, SOURCE, r.Ping(1), "PING before WELCOME [CON-2]"),
    (FrameType.HELLO, DESTINATION, WELCOME, "WELCOME without HELLO [CON-8]"),
    (FrameType.WELCOME, SOURCE, PLAY[2][1], "GUEST without WELCOME [CON-7]"),
    (
        FrameType.WELCOME,
        DESTINATION,
        r.Welcome(VERSION, bytes(range(16)), bytes(32), (r.FeatureChoice(99),), {}),
        "more than was offered [NEG-5]",
    ),
    (FrameType.GUEST, DESTINATION, r.Pong(1), "more PONGs than PINGs [PNG-2]"),
    (FrameType.ROUND, SOURCE, r.Round(1, 2, 0), "round 2 after 0 [CON-20]"),
    (FrameType.ROUND, SOURCE, r.Round(2, 1, 0), "attempt 2 of 1 [CON-23]"),
    (FrameType.PAGES, SOURCE, r.Pages(1, 2, 0, RUNS, np.zeros(0, "<u8")), "PAGES of round 2 [CON-21]"),
    (FrameType.ROUND_END, SOURCE, PAGES, "a page twice in a round [CON-27]"),
    (FrameType.ROUND_END, SOURCE, r.RoundEnd(1, 1, 3, 0, ((0, 3),)), "other sums [RND-3]"),
    (FrameType.ROUND_END, SOURCE, r.RoundEnd(1, 1, 2, 0, ((0, 2),)), "instead of ((0, 3),) [STR-8]"),
    (FrameType.ROUND_END, DESTINATION, r.RoundAck(1, 1, 2, 0), "ROUND_ACK without ROUND_END [CON-31]"),
    (FrameType.ROUND_ACK, SOURCE, r.Round(1, 2, 0), "ROUND without ROUND_ACK [CON-26]"),
    (FrameType.ROUND_ACK, DESTINATION, r.RoundAck(1, 2, 2, 0), "ROUND_ACK of round 2 [CON-30]"),
    (FrameType.ROUND_ACK, DESTINATION, r.RoundAck(1, 1, 1, 0), "other counts [CON-32]"),
    (
        FrameType.ROUND_ACK,
        DESTINATION,
        r.RoundAck(1, 1, 1, 0, (r.PageRange(0, 3, 1),)),
        "pages that were not sent [CON-33]",
    ),
    (FrameType.SWITCHOVER, DESTINATION, r.RoundAck(1, 1, 2, 0), "two answers to a round [CON-30]"),
    (FrameType.SWITCHOVER, DESTINATION, r.Ready(1), "an answer without a question [CON-38]"),
    (FrameType.READY, SOURCE, r.Round(1, 2, 0), "ROUND behind SWITCHOVER without READY [CON-41]"),
    (FrameType.READY, DESTINATION, r.Ready(2), "attempt 2 of 1 [CON-22]"),
    (FrameType.SWITCHOVER, SOURCE, PLAY[12][1], "SEAL without READY [CON-44]"),
    (FrameType.LOADED, DESTINATION, r.Loaded(1, bytes(15) + b"1"), "LOADED names another digest [CON-53]"),
    (FrameType.LOADED, SOURCE, r.Handover(1, 5), "HANDOVER without LOADED [ONE-17]"),
    (FrameType.HANDOVER, DESTINATION, PLAY[15][1], "RUNNING without HANDOVER [ONE-25]"),
    (FrameType.COMPLETE, SOURCE, r.Release(6), "RELEASE without COMPLETE [CMP-2]"),
    (None, SOURCE, r.Ping(1), "PING behind the last word [ABT-1]"),
]


@pytest.mark.parametrize(("before", "side", "record", "text"), WRONG)
def test_a_word_against_the_rules_is_noticed(before, side, record, text):
    both = Both().before(before)
    with pytest.raises(AssertionError) as caught:
        both.say(side, record)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("after_s", "round_", "bulk_bytes", "text"),
    [
        (1.0, 1, 9, "round 1 after 2 [CON-80]"),
        (1.0, 2, 4, "4 after 5 [CON-80]"),
        (0.4, 2, 5, "too often [PRG-1]"),
    ],
)
def test_progress_that_runs_backwards_is_noticed(after_s, round_, bulk_bytes, text):
    both = Both().before(FrameType.ACCEPT)
    both.say(SOURCE, r.Progress(Phase.ROUNDS, 2, 4, 4, 5, 0, 0, 0))
    both.now += after_s
    with pytest.raises(AssertionError) as caught:
        both.say(SOURCE, r.Progress(Phase.ROUNDS, round_, 4, 4, bulk_bytes, 0, 0, 0))
    assert text in str(caught.value)


def test_progress_that_was_not_selected_is_noticed():
    both = Both()
    both.say(SOURCE, HELLO)
    both.say(DESTINATION, r.Welcome(VERSION, bytes(range(16)), bytes(32), (), {}))
    with pytest.raises(AssertionError, match="not selected"):
        both.say(SOURCE, r.Progress(Phase.ROUNDS, 0, 0, 0, 0, 0, 0, 0))
