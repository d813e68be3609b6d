"""Run a command in a process group of its own, and end the whole group as soon as standard input ends.

    leash.py COMMAND ...

Standard input is a pipe whose other end the test run holds: however that ends, killed included, no server outlives it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 1.5
"""Seconds between asking and killing. SeaweedFS would take more than five; its files are thrown away."""


def end(server: subprocess.Popen[bytes]) -> None:
    """End the server and everything it has started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    patience = time.monotonic() + GRACE
    while server.poll() is None and time.monotonic() < patience:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def main() -> int:
    # An interrupt at the terminal is for the test run, which lets go of the pipe when it is done with the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So is a signal to its process group, as "timeout" sends it. No SIG_IGN here, which the server would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_the_end() -> None:
        while os.read(0, 1024):
            pass
        end(server)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    code = server.wait()
    end(server)  # it may have left children
    return code


if __name__ == "__main__":
    sys.exit(main())
