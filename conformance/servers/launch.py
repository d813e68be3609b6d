"""Start a server process on loopback, wait until it answers, and stop it with all it has started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")
LOCALHOST = "127.0.0.1"
PATIENCE = 60.0
"""Seconds until a server must answer."""

ATTEMPTS = 3
"""A port may be taken by another process after it was found free."""

HIGHEST_PORT = 65000
SEAWEEDFS_DISTANCE = 10000


@dataclass(frozen=True, slots=True)
class Command:
    """What starts a server, and tells that it is ready: ``ready`` is true, or raises OSError while it is not."""

    argv: Sequence[str]
    ready: Callable[[], bool]
    environ: Mapping[str, str]


class Running:
    """A server process. Stopped by :meth:`stop`, and in any case when this process ends."""

    def __init__(self, command: Command, directory: Path) -> None:
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LEASH), *command.argv],
                cwd=directory,
                env={**os.environ, **command.environ},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def log_tail(self) -> str:
        return self.log.read_bytes()[-1500:].decode(errors="replace")


def launch(name: str, make: Callable[[Path], Command], directory: Path) -> Running:
    """Start what ``make`` says for a directory of its own, and wait until it is ready."""
    for attempt in range(ATTEMPTS):
        place = directory / str(attempt)
        place.mkdir(parents=True)
        command = make(place)
        running = Running(command, place)
        patience = time.monotonic() + PATIENCE
        while running.alive and time.monotonic() < patience:
            try:
                if command.ready():
                    return running
            except OSError:
                pass
            time.sleep(0.03)
        running.stop()
    raise RuntimeError(f"{name} did not become ready in {PATIENCE:g} s; the end of its log:\n{running.log_tail()}")


# --- ports


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOCALHOST, 0))
        port: int = listening.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with socket.socket() as listening:
        try:
            listening.bind((LOCALHOST, port))
        except OSError:
            return False
        return True


def seaweedfs_ports(count: int) -> list[int]:
    """SeaweedFS listens on each port and, for gRPC, on the one 10000 above."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        while port + SEAWEEDFS_DISTANCE > HIGHEST_PORT:
            port -= SEAWEEDFS_DISTANCE
        if port not in found and is_free(port) and is_free(port + SEAWEEDFS_DISTANCE):
            found.append(port)
    return found


# --- ready


def status_of(method: str, url: str, timeout: float = 2) -> int:
    """The status code of an answer, whatever it is."""
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def answers(url: str) -> Callable[[], bool]:
    """Ready as soon as anything answers there, an error included."""
    return lambda: status_of("GET", url) > 0


def greets(port: int, banner: bytes) -> Callable[[], bool]:
    """Ready as soon as it sends these bytes to whoever connects."""

    def check() -> bool:
        with socket.create_connection((LOCALHOST, port), 2) as connection:
            connection.settimeout(2)
            return connection.recv(64).startswith(banner)

    return check


def makes_bucket(url: str) -> Callable[[], bool]:
    """Ready as soon as it makes this bucket, or has it."""
    return lambda: status_of("PUT", url, timeout=20) in (200, 409)
