"""No server outlives whoever started it, and none ends before that."""

from __future__ import annotations

import select
import signal
import subprocess
import sys

import pytest

from conformance.servers.launch import LEASH

SERVER = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize("before", [None, signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_with_its_starter_and_not_with_a_signal_to_all(before: signal.Signals | None) -> None:
    leash = [sys.executable, "-I", "-S", str(LEASH), sys.executable, "-c", SERVER]
    with subprocess.Popen(leash, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if before is not None:
            process.send_signal(before)
            assert not select.select([process.stdout], [], [], 0.2)[0]  # the server has its output open yet
        process.stdin.close()
        assert process.stdout.read() == b""  # and now it has not
        assert process.wait(10) == -signal.SIGTERM % 256
