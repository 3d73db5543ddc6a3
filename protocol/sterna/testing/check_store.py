"""The public conformance check of lease stores.

A store that passes has not been proven right: what it does in a crash of its own machine can be seen by
nobody who only calls it. But each law was given an occasion to be broken, by tasks, and by processes if there
is a claimant to start.

The laws, in the words of the messages:

1. a slot is filled once, by one of its claimants [ONE-1, ONE-2]
2. a claim is answered with the slot's runner, whoever's it is [ONE-2]
3. whoever was named is named ever after, to everybody [ONE-3]
4. slot n + 1 is filled only if slot n is; a claim that comes too early fills nothing, later neither [ONE-2]
5. repeating a claim changes nothing [ONE-7]
6. chains of different guests have nothing to do with each other
7. a watch ends with the slot's runner
8. what can be in no slot is refused with ValueError
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from sterna.host.lease import LeaseStore, Slot, claim_until_named
from sterna.wire.records import NO_RUNNER, Runner

_CLAIMANTS: Final = 8
_SLOTS: Final = 12
_FAR: Final = 1 << 40

ONE_WINNER: Final = "a slot is filled once, by one of its claimants"
ANSWER: Final = "a claim is answered with the slot's runner, whoever's it is"
FOR_EVER: Final = "whoever was named is named ever after, to everybody"
IN_ORDER: Final = "slot n + 1 is filled only if slot n is"
REPEAT: Final = "repeating a claim changes nothing"
APART: Final = "chains of different guests have nothing to do with each other"
WATCH: Final = "a watch ends with the slot's runner"
REFUSED: Final = "what can be in no slot is refused with ValueError"


async def check_store(
    make_store: Callable[[], Awaitable[LeaseStore]],
    *,
    claimant: Sequence[str] = (),
    processes: int = 4,
) -> None:
    """Check that a lease store keeps its laws.

    ::

        async def test_my_store() -> None:
            await check_store(connect, claimant=[sys.executable, "-m", "sterna.testing.claimant", url])

    Args:
        make_store: connects to the store, each time anew and always to the same one. It may hold slots of
            other guests. What it returns is closed at the end.
        claimant: a program that races in processes of its own. It is called with the guest's id in
            hexadecimal, its host's name and the number of epochs behind these words, and does what
            `sterna.testing.claimant` does. Without one, tasks race.
        processes: how many of them.

    Raises:
        AssertionError: a law is broken; the message names it. Exceptions of the store itself pass through.
    """
    stores = [await make_store() for _ in range(_CLAIMANTS)]
    try:
        await _check_order(stores)
        await _check_repetition(stores)
        await _check_watch(stores)
        await _check_refusals(stores[0])
        guest = secrets.token_bytes(16)
        said = await _race_of_tasks(stores, guest)
        await _judge_race(stores, guest, said)
        if claimant:
            guest = secrets.token_bytes(16)
            said = await _race_of_processes(claimant, guest, processes)
            await _judge_race(stores, guest, said)
    finally:
        for store in stores:
            await store.aclose()


def _require(good: bool, law: str, what: str) -> None:
    if not good:
        raise AssertionError(f"{law}: {what}")


def _runner(host: str) -> Runner:
    return Runner(host, secrets.token_bytes(16))


async def _check_order(stores: Sequence[LeaseStore]) -> None:
    """Slots in their order, guests apart, and nothing where nothing was claimed."""
    store, other = stores[0], stores[1]
    guest, neighbour = secrets.token_bytes(16), secrets.token_bytes(16)
    first, second = _runner("one.check"), _runner("two.check")
    _require(await store.newest(guest) is None, IN_ORDER, "a new guest has a slot")
    _require(await store.read(guest, 1) is None, IN_ORDER, "slot 1 of a new guest is filled")
    for epoch in (2, 3, _FAR):
        named = await store.claim(guest, epoch, second)
        _require(named is None, IN_ORDER, f"slot {epoch} of a new guest was given to {named}")
    _require(await store.claim(guest, 1, first) == first, IN_ORDER, "slot 1 was not given to its claimant")
    # An early claim must not lie in wait: it "fills nothing", later neither.
    _require(await other.read(guest, 2) is None, IN_ORDER, "slot 2 was filled by a claim that came too early")
    _require(await other.newest(guest) == Slot(1, first), FOR_EVER, "elsewhere another slot is the newest")
    _require(await other.claim(guest, 3, second) is None, IN_ORDER, "slot 3 was filled before slot 2")
    _require(await other.claim(guest, 2, second) == second, IN_ORDER, "slot 2 was not given to its claimant")
    _require(await store.newest(guest) == Slot(2, second), FOR_EVER, "the newest slot is not what it was")
    _require(await store.read(guest, 1) == first, FOR_EVER, "slot 1 has changed")
    _require(await store.newest(neighbour) is None, APART, "a claim for one guest filled another's slot")
    _require(await store.read(neighbour, 1) is None, APART, "a claim for one guest filled another's slot")


async def _check_repetition(stores: Sequence[LeaseStore]) -> None:
    """The same claim again, and another's claim of the same slot."""
    store, other = stores[0], stores[1]
    guest = secrets.token_bytes(16)
    winner, loser = _runner("winner.check"), _runner("loser.check")
    await store.claim(guest, 1, winner)
    for each in (store, other, store):
        _require(await each.claim(guest, 1, winner) == winner, REPEAT, "a repeated claim has another answer")
        _require(await each.claim(guest, 1, loser) == winner, ANSWER, "the loser was not told who won")
    await other.claim(guest, 2, loser)
    _require(
        await store.claim(guest, 1, winner) == winner, REPEAT, "an old claim, repeated, has another answer"
    )
    _require(
        await store.newest(guest) == Slot(2, loser), REPEAT, "repeating an old claim moved the newest slot"
    )
    same = Runner(winner.host, loser.id)
    _require(await store.claim(guest, 3, same) == same, ANSWER, "host and id together make a runner")


async def _check_watch(stores: Sequence[LeaseStore]) -> None:
    """A watch that waits, one that comes late, and one that is given up."""
    guest = secrets.token_bytes(16)
    runners = [_runner(f"{number}.check") for number in (1, 2)]
    seen: list[Runner] = []

    async def look(store: LeaseStore, epoch: int) -> None:
        seen.append(await store.watch(guest, epoch))

    async with trio.open_nursery() as nursery:
        for store in stores[1:3]:
            nursery.start_soon(look, store, 2)
        await claim_until_named(stores[0], guest, 1, runners[0])
        for _ in range(5):
            await stores[0].newest(guest)
        early = list(seen)
        await claim_until_named(stores[0], guest, 2, runners[1])
    _require(not early, WATCH, "it has ended before the slot was filled")
    await look(stores[3], 1)
    _require(seen == [runners[1], runners[1], runners[0]], WATCH, f"it ended with {seen}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, stores[0], 3)
        await stores[1].newest(guest)
        nursery.cancel_scope.cancel()
    _require(len(seen) == 3, WATCH, "one that was cancelled ended as if the slot were filled")


async def _check_refusals(store: LeaseStore) -> None:
    """Calls that can only be a mistake."""
    guest, runner = secrets.token_bytes(16), _runner("refused.check")
    wrong: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("epoch 0", lambda: store.claim(guest, 0, runner)),
        ("epoch -1", lambda: store.read(guest, -1)),
        ("epoch 2**64", lambda: store.claim(guest, 1 << 64, runner)),
        ("a guest of 15 bytes", lambda: store.claim(guest[1:], 1, runner)),
        ("a guest of 17 bytes", lambda: store.newest(guest + b"x")),
        ("no runner", lambda: store.claim(guest, 1, NO_RUNNER)),
        ("a runner without a host", lambda: store.claim(guest, 1, Runner("", runner.id))),
        ("an id of 15 bytes", lambda: store.claim(guest, 1, Runner("a.check", runner.id[1:]))),
        ("a line break in a name", lambda: store.claim(guest, 1, Runner("a\nb", runner.id))),
        ("a name of 256 bytes", lambda: store.claim(guest, 1, Runner("x" * 256, runner.id))),
    ]
    for what, call in wrong:
        try:
            answer = await call()
        except ValueError:
            continue
        raise AssertionError(f"{REFUSED}: {what} was answered with {answer!r}")
    # The other way round: every name that the wire can carry goes through a store.
    odd = Runner('"\\{}\u2028é 日本 ../' + "x" * 200, bytes(range(16)))
    _require(await store.claim(guest, 1, odd) == odd, ANSWER, "a name with odd characters has changed")
    _require(await store.read(guest, 1) == odd, ANSWER, "a name with odd characters has changed")


Said = Mapping[str, Mapping[int, Runner]]


async def _race_of_tasks(stores: Sequence[LeaseStore], guest: bytes) -> Said:
    """Everybody claims every slot; what each host was told."""
    said: dict[str, dict[int, Runner]] = {}

    async def race(store: LeaseStore, host: str) -> None:
        told = said[host] = {}
        for epoch in range(1, _SLOTS + 1):
            told[epoch] = await claim_until_named(store, guest, epoch, _runner(host))

    async with trio.open_nursery() as nursery:
        for number, store in enumerate(stores):
            nursery.start_soon(race, store, f"task{number}.check")
    return said


async def _race_of_processes(claimant: Sequence[str], guest: bytes, processes: int) -> Said:
    """Likewise, in processes that start at the same moment."""
    lines: dict[str, Sequence[str]] = {}
    waiting = processes
    go = trio.Event()

    async def race(host: str) -> None:
        nonlocal waiting
        command = [*claimant, guest.hex(), host, str(_SLOTS)]
        start = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            assert process.stdin is not None
            assert process.stdout is not None
            text = b""
            async for piece in process.stdout:
                text += piece
                if b"\n" in piece and text.count(b"\n") == 1:
                    waiting -= 1
                    if not waiting:
                        go.set()
                    await go.wait()
                    await process.stdin.send_all(b"go\n")
            lines[host] = text.decode().splitlines()[1:]

    async with trio.open_nursery() as nursery:
        for number in range(processes):
            nursery.start_soon(race, f"process{number}.check")
    said: dict[str, dict[int, Runner]] = {}
    for host, rows in lines.items():
        words = [row.split(" ") for row in rows]
        said[host] = {int(epoch): Runner(named, bytes.fromhex(number)) for epoch, named, number in words}
    return said


async def _judge_race(stores: Iterable[LeaseStore], guest: bytes, said: Said) -> None:
    """All were told the same, of every slot, and so is everybody who asks later."""
    winners: dict[int, Runner] = {}
    for host, slots in said.items():
        _require(len(slots) == _SLOTS, ANSWER, f"{host} was told of {len(slots)} slots instead of {_SLOTS}")
        for epoch, runner in slots.items():
            winner = winners.setdefault(epoch, runner)
            _require(winner == runner, ONE_WINNER, f"slot {epoch} is {winner}'s, and {runner}'s for {host}")
            _require(runner.host in said, ONE_WINNER, f"slot {epoch} is {runner}'s, who has not claimed it")
    ids = {runner.id for runner in winners.values()}
    _require(len(ids) == len(winners), ONE_WINNER, "a runner has two slots, and claimed one")
    for store in stores:
        for epoch, runner in winners.items():
            _require(await store.read(guest, epoch) == runner, FOR_EVER, f"slot {epoch} has changed")
        _require(await store.newest(guest) == Slot(_SLOTS, winners[_SLOTS]), FOR_EVER, "another newest slot")
        _require(
            await store.read(guest, _SLOTS + 1) is None, IN_ORDER, "a slot that nobody claimed is filled"
        )
