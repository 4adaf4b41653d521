"""One timing at a time on a machine."""

from __future__ import annotations

import subprocess
import sys
import threading

from edgeprune.latency.alone import timing_alone

HOLDER = """
import sys
from edgeprune.latency.alone import timing_alone
with timing_alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_until_the_first_is_done() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    entered = threading.Event()

    def enter() -> None:
        with timing_alone():
            entered.set()

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.3)
    finally:
        holder.kill()  # a killed process holds nothing
        holder.communicate()
    assert entered.wait(60)
    other.join()
