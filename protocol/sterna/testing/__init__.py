"""For embedders' own tests: the conformance checks of guests and lease stores, and helpers around them."""

from sterna.testing.check_guest import check_guest
from sterna.testing.check_store import check_store
from sterna.testing.crash_files import Crashed, CrashFiles
from sterna.testing.drive import run_workload
from sterna.testing.faulty_store import Fault, FaultyStore

__all__ = ["CrashFiles", "Crashed", "Fault", "FaultyStore", "check_guest", "check_store", "run_workload"]
