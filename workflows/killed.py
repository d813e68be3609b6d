"""Runs an example that kills itself, as ``kill -9`` does, at a line that it prints or a moment later.

    python -m workflows.killed "step 300" 0.02 examples.torchax_training DIRECTORY

It does so itself because nobody else is fast enough on a busy machine: the program could be done before it is killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from typing import TextIO


class Watched:
    """Standard output that ends the process once a line that begins so has been written."""

    def __init__(self, stream: TextIO, line: str, delay: float) -> None:
        self._stream, self._line, self._delay = stream, line, delay

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        if any(line.startswith(self._line) for line in text.splitlines()):
            self._stream.flush()
            if self._delay:
                threading.Timer(self._delay, kill).start()
            else:
                kill()
        return written

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    _, line, delay, *sys.argv = sys.argv
    sys.stdout = Watched(sys.stdout, line, float(delay))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
