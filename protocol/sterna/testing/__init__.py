"""For embedders' own tests: the conformance check of guests, and helpers around it."""

from sterna.testing.check_guest import check_guest
from sterna.testing.drive import run_workload

__all__ = ["check_guest", "run_workload"]
