"""A process that holds KVM guests, one after the other, in the life of one interpreter.

Lines on standard input: ``guest PATH`` makes a guest that runs and serves it there, ``room PATH`` makes room,
``end PATH`` ends what is served there. Each is answered by a line when it is done.
"""

from __future__ import annotations

import sys
import threading

from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_server import HolderServer
from sterna.guest.kvm.description import describe
from sterna.guest.kvm.guest import KvmGuest
from sterna.guest.process import ProcessSettings
from sterna.guest.process_holder import SWITCH_INTERVAL_S
from sterna.guest.schedule import WorkloadParameters
from sterna.wire.records import Runner

MEMORY = 4 << 20
VCPUS = 2
RATE = 64 << 20
RUNNER = Runner("here", b"h" * 16)


def make(what: str, journal: str) -> HolderEngine:
    guest = KvmGuest(ProcessSettings(RATE, journal=journal))
    if what == "room":
        return HolderEngine(guest)
    parameters = WorkloadParameters.for_memory(MEMORY, MEMORY // 4, seed=3, cold_every=4)
    guest.create(describe("soaked", bytes(range(16)), MEMORY, VCPUS), parameters)
    guest.run(1, RUNNER)
    return HolderEngine(guest, state=HeldState.RUNNING, epoch=1, runner=RUNNER)


def main(journal: str) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    served: dict[str, tuple[HolderServer, threading.Thread]] = {}
    for line in sys.stdin:
        what, path = line.split()
        if what == "end":
            server, thread = served.pop(path)
            if thread.is_alive():  # with a guest that has left it ends by itself
                server.stop()
            thread.join()
        else:
            server = HolderServer(path, make(what, journal))
            served[path] = server, threading.Thread(target=server.serve)
            served[path][1].start()
        print(what, path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
