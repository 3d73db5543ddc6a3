"""How far ahead of its reader a source pushes pages, and where those go that were asked for."""

from __future__ import annotations

import pytest
from core_support import EPOCH, THERE, ServingRig
from hypothesis import example, given
from hypothesis import strategies as st
from test_core_serving import BLOCK, serving

from sterna.core.lanes import Lane
from sterna.core.pushing import WINDOW_BYTES, WINDOW_LEAST_BYTES, Push, Window
from sterna.core.serving import PUSH_BYTES
from sterna.core.tables import SourceState as S
from sterna.errors import RemoteProtocolError
from sterna.limits import CHUNK_BYTES
from sterna.wire import records as r

ASK = r.PageRequest(0, 1, 2)

# ---- the window ----


def opened(window: Window, times: int = 200) -> Window:
    """After so many answers without a request."""
    for ping in range(times):
        window.pushed(window.batch_bytes)
        window.marked(ping)
        assert window.is_open(set().__contains__)
    return window


def test_the_push_stays_a_little_ahead_of_what_was_read():
    """[PCY-23]"""
    unanswered = {1, 2}
    window = opened(Window(0.0, 0.0))
    assert window.is_open(unanswered.__contains__)
    assert window.batch_bytes == WINDOW_BYTES // 2
    assert not window.pushed(WINDOW_BYTES // 2 - 1)
    assert window.pushed(1)
    window.marked(1)
    assert window.is_open(unanswered.__contains__)
    assert window.pushed(WINDOW_BYTES // 2)
    window.marked(2)
    assert not window.is_open(unanswered.__contains__)
    unanswered.remove(1)
    assert window.is_open(unanswered.__contains__)
    assert not window.pushed(1)
    assert not window.is_open(unanswered.__contains__)
    assert window.pushed(WINDOW_BYTES // 2 - 1)


def test_a_guest_that_waits_again_and_again_finds_little_before_its_pages():
    """[PCY-23] But the push goes on [PCY-13]."""
    window = opened(Window(0.0, 0.0))
    window.close()
    for ping in range(1, 100):
        assert window.is_open({ping}.__contains__)
        assert window.pushed(WINDOW_LEAST_BYTES)
        window.marked(ping)
        assert not window.is_open({ping}.__contains__)
        window.close()
    assert opened(window, 3).batch_bytes == CHUNK_BYTES
    assert opened(window).batch_bytes == PUSH_BYTES


@given(
    st.floats(0, 1e9),
    st.floats(0, 1),
    st.lists(st.one_of(st.integers(1, PUSH_BYTES), st.sampled_from(["request", "answer"])), max_size=60),
)
@example(0.0, 0.0, [60 << 10, "answer", 28 << 10])  # a small group before a large one
@example(0.0, 0.0, [PUSH_BYTES, "answer"] * 20 + [100 << 10, "request"])
def test_a_push_never_stands_still_while_nothing_is_under_way(rate_bytes_s, rtt_s, steps):
    """[PCY-13] [PCY-23] Whatever the sizes of the groups: more may be pushed, or an answer will come."""
    window, unanswered, pings = Window(rate_bytes_s, rtt_s), [], 0
    for step in steps:
        if step == "request":
            window.close()
        elif step == "answer":
            del unanswered[:1]
        elif window.is_open(unanswered.__contains__) and window.pushed(min(step, window.batch_bytes)):
            pings += 1
            unanswered.append(pings)
            window.marked(pings)
        assert window.is_open(unanswered.__contains__) or unanswered


def test_batches_grow_where_nothing_waits_behind_them():
    """On data connections, which need no window; a request makes them small again."""
    window = Window(0.0, 0.0)
    sizes = []
    for _ in range(100):
        sizes.append(window.batch_bytes)
        window.open(window.batch_bytes)
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (CHUNK_BYTES, PUSH_BYTES)
    window.close()
    assert window.batch_bytes == CHUNK_BYTES


def test_a_long_link_is_kept_full_and_half_full_for_a_guest_that_waits():
    """[PCY-23]"""
    window = Window(1e8, 0.05)
    assert pushed_before_an_answer(window) == 2_500_000 // PUSH_BYTES
    assert pushed_before_an_answer(opened(window)) == 10_000_000 // PUSH_BYTES
    window.close()
    assert pushed_before_an_answer(window) == 2_500_000 // PUSH_BYTES


def pushed_before_an_answer(window: Window) -> int:
    """How many batches; the answer comes then."""
    batches = 0
    while window.is_open(lambda _: True):
        if window.pushed(window.batch_bytes):
            window.marked(batches)
        batches += 1
    window.marked(batches)
    window.close()
    assert window.is_open(lambda _: False)
    return batches


# ---- connections ----


def push(*, apart: bool) -> Push:
    """Of two mebibytes, with an open window."""
    return Push(serving((1, 0, 32 * BLOCK)), opened(Window(0.0, 0.0)), apart=apart)


def lane(stream: int, *, attached: bool = True) -> Lane:
    made = Lane(stream, 0.0)
    made.attached = attached and stream > 0
    return made


def runs(pushed: Push, connection: Lane, *, answered: bool = True) -> list[tuple[int, int]] | None:
    """First pages and counts of the next frame on this connection, which is sent."""
    batch = pushed.next_batch(connection, lambda _: not answered, zeros=True)
    if batch is None:
        return None
    if pushed.sent(connection.stream, batch[0].bulk_bytes):
        pushed.window.marked(1)
    return [(int(run["first"]), int(run["count"])) for run in batch[0].runs]


def test_alone_the_control_connection_takes_all_that_the_window_lets_pass():
    """[PCY-13] [PCY-23] What was asked for needs no window."""
    pushed, control = push(apart=False), lane(0)
    sizes = list(iter(lambda: runs(pushed, control, answered=False), None))
    assert len(sizes) == WINDOW_BYTES // PUSH_BYTES
    pushed.request(r.PageRequest(1, 20 * BLOCK, 1))
    assert runs(pushed, control, answered=False) == [(20 * BLOCK, BLOCK)]
    assert runs(pushed, control, answered=False) is None
    assert runs(pushed, control) == [(21 * BLOCK, BLOCK)]  # the request has closed it


def test_beside_data_connections_only_what_was_asked_for_goes_on_the_control_connection():
    """[STR-16]"""
    pushed, control, data = push(apart=True), lane(0), lane(1)
    assert runs(pushed, control) is None
    assert runs(pushed, lane(1, attached=False)) is None
    first = runs(pushed, data)
    assert first is not None
    pushed.request(r.PageRequest(1, 20 * BLOCK, 1))
    assert runs(pushed, data) == [(4 * BLOCK, BLOCK)]  # no page that somebody waits for
    assert runs(pushed, control) == [(20 * BLOCK, BLOCK)]
    assert runs(pushed, control) is None


def test_data_connections_need_no_window_and_no_ping():
    """[PCY-23]"""
    pushed, data = push(apart=True), lane(1)
    while (batch := pushed.next_batch(data, lambda _: True, zeros=True)) is not None:
        assert not pushed.sent(1, batch[0].bulk_bytes)
    assert runs(pushed, lane(0)) is None


def test_a_request_that_is_refused_leaves_the_window_as_it_was():
    """[PCY-19]"""
    pushed = push(apart=False)
    with pytest.raises(RemoteProtocolError):
        pushed.request(r.PageRequest(9, 0, 1))
    assert pushed.window.batch_bytes == PUSH_BYTES


# ---- in the machine ----


def test_what_nobody_asked_for_waits_for_the_reader():
    """[PCY-23] What is asked for does not."""
    rig = ServingRig().until(S.HANDED_OVER)
    assert not rig.machine.guest_waits
    rig.say(r.Running(EPOCH + 1, THERE))
    rig.machine._push.window._ahead = 1 << 30
    rig.machine._push.window._size = 1 << 29
    rig.machine._push.window.marked(rig.machine._heartbeat.ask(rig.now).id)
    assert [each for each in rig.drain() if isinstance(each, r.Pages)] == []
    rig.say(ASK)
    assert rig.machine.guest_waits
    assert rig.machine._push.window.batch_bytes == 1 << 16
    (table,) = [each for each in rig.drain() if isinstance(each, r.Pages)]
    assert table.page_count == 2


def test_the_reader_is_asked_how_far_it_is():
    """[PCY-23] By a PING behind the pages."""
    rig = ServingRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    rig.machine._push.window._unmarked = 1 << 30
    rig.drain()
    assert isinstance(rig.heard[-2], r.Pages)
    assert isinstance(rig.heard[-1], r.Ping)
    assert rig.machine._heartbeat.waits_for(rig.heard[-1].id)
