"""Several processes do what one does, with seeds of their own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from sterna_fuzz import jobs
from sterna_fuzz.jobs import run_jobs, share
from sterna_fuzz.running import Wish


def test_work_is_shared_out():
    wishes = share(Wish(1, 10, 5.0, shrink=False), 3)
    assert [wish.examples for wish in wishes] == [3, 3, 4]
    assert len({wish.seed for wish in wishes}) == 3
    assert all((wish.seconds, wish.shrink) == (5.0, False) for wish in wishes)
    assert share(Wish(1, 10), 3)[0] == share(Wish(1, 10), 4)[0].__class__(wishes[0].seed, 3)


def test_nobody_works_for_nothing():
    assert [wish.examples for wish in share(Wish(1, 2), 4)] == [1, 1]


def test_without_a_number_all_work_until_the_time_is_up():
    assert [wish.examples for wish in share(Wish(1, None, 5.0), 2)] == [None, None]


def test_one_job_runs_here(monkeypatch):
    said = []
    monkeypatch.setattr(jobs, "PROGRESS_S", 0.0)
    report = run_jobs("frames", ["round-trip"], Wish(1, 5), 1, said.append)
    assert report.examples == {"round-trip": 5}
    assert said[-1].startswith("  5 examples in ")


@pytest.mark.slow
def test_two_jobs_run_in_processes():
    report = run_jobs("frames", ["bytes", "body"], Wish(1, 40), 2, lambda _: None)
    assert report.examples == {"bytes": 8, "body": 32}
    assert report.reached["bytes"].total() == 8
    assert report.failures == []


@pytest.mark.slow
def test_workers_end_with_whoever_is_killed():
    code = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from sterna_fuzz import jobs
context = multiprocessing.get_context("spawn")
with ProcessPoolExecutor(1, context, initializer=jobs._begin, initargs=(context.Value("q", 0),)) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            assert select.select([worker], [], [], 60.0)[0]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)
