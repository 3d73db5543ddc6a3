"""Recordings of real processes: made by one command, read by others."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import World

from sterna.observe.recording import RecordingReader, Side
from sterna.observe.sessions import Over, Sessions
from sterna.registry import Sender

pytestmark = pytest.mark.slow


async def verdict(world: World, path: Path) -> tuple[int, dict]:
    command = await world.start("verify", "--json", path)
    code = await command.end()
    return code, command.last


async def test_the_demo_is_recorded(world: World) -> None:
    """[SEC-14] [SEC-15] What one command says of a migration, another one finds in its bytes."""
    path = world.directory / "demo.rec"
    small = ["--memory", "16MiB", "--hot", "4MiB", "--dirty-rate", "8MiB/s"]
    demo = await world.start("demo", "--json", *small, "--record", path)
    assert await demo.end() == 0, demo.said()
    assert f"{path} holds the guest's memory" in demo.said().replace("\n", " ")
    assert path.stat().st_mode & 0o777 == 0o600
    code, found = await verdict(world, path)
    assert code == 0
    assert found["ok"] is True
    (session,) = found["sessions"]
    result = demo.last
    assert session["outcome"] == "completed"
    assert session["digest"] == result["digest"]["source"]
    assert session["pages"] == sum(one["pages"] for one in result["rounds"])
    assert [one["pages"] for one in session["rounds"]] == [one["pages"] for one in result["rounds"]]
    assert session["bytes"]["source"] == result["bytes_sent"]
    assert 0 < session["seconds_blackout"] < result["seconds_total"]
    inspect = await world.start("inspect", "--json", path)
    assert await inspect.end() == 0
    frames = [line for line in inspect.lines if line["event"] == "frame"]
    assert len(frames) == found["frames"]
    assert {"HELLO", "PAGES", "SEAL", "HANDOVER", "BYE"} <= {line["name"] for line in frames}


async def test_both_ends_of_a_migration_that_is_killed(world: World) -> None:
    """[REC-10] What both have recorded until then is good, and says where the guest is."""
    here, there = world.directory / "a.rec", world.directory / "b.rec"
    await world.source()
    await world.room()
    serve, port = await world.serve("--record", there)
    migrate = await world.migrate(port, "--record", here, "--bandwidth", "2MiB/s")
    await migrate.until("progress", lambda line: line["bytes_sent"] > 1 << 20)
    migrate.send(signal.SIGKILL)
    await migrate.end()
    await serve.until("session")
    serve.send(signal.SIGINT)
    await serve.end()
    code, found = await verdict(world, here)
    assert code == 0
    assert found["recording"]["side"] == "source"
    assert found["recording"]["cut_off"] is True
    assert found["sessions"][0]["runs"] == "unknown"
    code, found = await verdict(world, there)
    assert code == 0
    assert found["recording"]["side"] == "destination"
    assert found["recording"]["cut_off"] is False
    (session,) = found["sessions"]
    assert (session["outcome"], session["runs"]) == ("cut", "source")
    assert "lost (from the source)" in session["text"]
    await world.check_runs("s")


async def test_what_the_kit_has_recorded(world: World) -> None:
    """Cases of two implementations: nothing is wrong with what an endpoint sends to a peer that behaves."""
    out = world.directory / "kit"
    plain = ("honest-00[1-4]", "honest-10[1-4]", "matrix-00[12]")
    several = ("stream-02[0-4]", "stream-101", "matrix-04[0-2]")  # connections, of which Sterna alone has any
    globs = [word for glob in (*plain, *several) for word in ("--only", glob)]
    run = await world.start("interop", "run", *globs, "--keep", "--out", out, "--json")
    assert await run.end() == 0, run.said()
    judged = 0
    for path in sorted(out.glob("cases/*-plain/recording")):
        with path.open("rb") as file:
            reader = RecordingReader(file)
            steps = list(Sessions(reader.side, reader.clock).follow(reader))
        at = {Side.SOURCE: Sender.SOURCE, Side.DESTINATION: Sender.DESTINATION}.get(reader.side)
        for over in (step for step in steps if isinstance(step, Over)):  # one for each connection
            fault = over.follower.fault
            assert fault is None or fault.sender is at, (path, fault)  # the kit's own peer is at that side
        judged += 1
    assert judged == 24 + 9


@pytest.mark.parametrize("more", [[], ["--unverified"]], ids=["hashed", "unhashed"])
async def test_a_session_with_data_connections_is_verified(world: World, more: list[str]) -> None:
    """[STR-13] [RND-4] [REC-7] [MEM-21] As one session, on whatever connection its pages were."""
    path = world.directory / "streams.rec"
    small = ["--memory", "16MiB", "--hot", "4MiB", "--dirty-rate", "8MiB/s", "--streams", "3"]
    demo = await world.start("demo", "--json", *small, "--record", path, *more)
    assert await demo.end() == 0, demo.said()
    code, found = await verdict(world, path)
    assert code == 0, found
    (session,) = found["sessions"]
    assert session["outcome"] == "completed"
    assert session["digest"] == demo.last["digest"]["source"]
    assert [one["pages"] for one in session["rounds"]] == [one["pages"] for one in demo.last["rounds"]]
    assert found["pages"] == session["pages"]
    assert demo.last["verified"] is session["hashed"] is (not more)
