"""What a world consists of can be copied and compared, and knows its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.core.history import RecordConflict
from sterna.core.records import HandBack, SessionRecord, Side, Start
from sterna.registry import ErrorCode
from sterna.sim.holder import Holder
from sterna.sim.hosts import NOBODY, Hold, Host, Line, Process, Task, Write, write
from sterna.sim.machines import Trouble


def test_copies_go_their_own_way():
    host = Host("alpha")
    host.holders.append(Holder("alpha", b"i" * 16))
    process = Process(3)
    host.processes.append(process)
    process.tasks.append(Task(1, "recovery", image=b"i" * 16))
    other = host.copy()
    assert other.key(str) == host.key(str)
    changes = (
        lambda: setattr(other.holders[0], "mark", 2),
        lambda: setattr(other.processes[0], "frozen", True),
        lambda: setattr(other.processes[0].tasks[0], "op", Hold("run", b"i" * 16)),
        lambda: setattr(other, "lock", 3),
        lambda: setattr(other.processes[0], "rest", "seen"),
    )
    for change in changes:
        before = other.key(str)
        change()
        other.cached = None
        assert other.key(str) != before
    assert host.key(str) != other.key(str)
    assert host.processes[0].tasks[0].op is None


def test_processes_are_named_by_what_they_are():
    host = Host("alpha")
    host.processes += [Process(8, beside=True), Process(6)]
    assert host.names() == {0: 0, 6: 1, 8: 2}
    assert host.may_lock(host.endpoint)
    host.lock = 8
    assert not host.may_lock(host.endpoint)
    host.rests(host.processes[0])
    assert (host.lock, len(host.processes)) == (0, 1), "who stood beside ends"


def test_who_is_who():
    host = Host("alpha")
    beside, endpoint = Process(2, beside=True), Process(4)
    host.processes += [beside, endpoint]
    assert host.endpoint is endpoint
    assert host.process(2) is beside
    assert host.process(9) is None
    assert endpoint.task(1) is None
    host.sent = ((b"s" * 16, b"i" * 16),)
    assert host.image_of(b"s" * 16) == b"i" * 16
    assert host.image_of(b"t" * 16) == b"t" * 16
    assert host.holder(b"i" * 16) is None


def test_a_connection():
    line = Line(1, ((0, 2, 1), (1, 3, 1)))
    line.push(1, (b"one",))
    line.push(1, ())
    assert line.pipes == [(), ((b"one",),)]
    other = line.copy()
    names = {(0, 2, 1): (0, 1, 1), (1, 3, 1): (1, 1, 1)}
    assert other.key(names) == line.key(names) != line.key() == other.key()
    line.leaves(0, crashed=True)
    assert line.ends == ((0, NOBODY, 0), (1, 3, 1))
    line.push(1, (b"two",))
    line.push(0, (b"three",))
    assert (line.pipes, line.closed, line.gone) == ([(), ((b"one",),)], [True, False], [True, False])
    assert line.crashed == [True, False]
    other.cut()
    other.push(1, (b"four",))
    assert (other.broken, other.pipes) == (True, [(), ()])


def test_a_connection_is_torn():
    """Of what comes next the first piece arrives; all else is lost, on both ways."""
    line = Line(1, ((0, 2, 1), (1, 3, 1)))
    line.push(0, (b"zero",))
    line.push(1, (b"one", b"two"))
    line.push(1, (b"three",))
    line.tear(1)
    assert (line.broken, line.pipes) == (True, [(), ((b"one",),)])


def test_who_has_crashed_differs_only_while_bytes_of_his_are_on_their_way():
    lines = [Line(1, ((0, 2, 1), (1, 3, 1))) for _ in range(2)]
    for line, crashed in zip(lines, (True, False), strict=True):
        line.push(1, (b"one",))
        line.leaves(0, crashed=crashed)
    assert lines[0].key() != lines[1].key()
    for line in lines:
        line.pipes[1] = ()
    assert lines[0].key() == lines[1].key()


def test_ends_are_what_they_are_here_and_now():
    host = Host("beta")
    beside, endpoint = Process(7, beside=True), Process(9)
    host.processes = [beside, endpoint]
    for number in (2, 5):
        endpoint.tasks.append(Task(number, "destination"))
    beside.tasks.append(Task(3, "destination"))
    assert host.ends() == {(1, 9, 2): (1, 1, 1), (1, 9, 5): (1, 1, 2), (1, 7, 3): (1, 2, 1)}


def test_who_knows_old_records_only_contradicts_new_ones():
    host, old, new = Host("beta"), Process(3), Process(5)
    session = SessionRecord(b"s" * 16, 0, Side.DESTINATION, bytes(32), "alpha")
    host.history = host.history.after(session)
    write(host, new, session)
    with pytest.raises(RecordConflict):
        write(host, new, Start(1))
    old.stale = host.history
    with pytest.raises(RecordConflict):
        write(host, old, HandBack(1))
    write(host, old, SessionRecord(b"t" * 16, 0, Side.DESTINATION, bytes(32), "alpha"))
    assert len(host.history.records) == len(old.stale.records) == 2


def test_trouble_is_an_error():
    assert Trouble(ErrorCode.BUSY).error().code is ErrorCode.BUSY


def test_what_was_started_is_not_what_was_handed_back():
    """Not even by its hash, which is all that a plain exploration keeps."""
    keys = []
    for record in (Start(2), HandBack(2)):
        host, task = Host("beta"), Task(1, "recovery")
        host.history = replace(host.history, records=(record,))
        task.op = Write(record)
        keys.append((hash(host.key(str)), hash(task.key())))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] != keys[1][1]
