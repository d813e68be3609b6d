"""How much memory it takes beside the data to put and read much of it, or to do anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PUT_AND_READ", "beside_the_data", "peaks", "prepare"]

_PATTERN = b"0123456789abcdef"
PUT_AND_READ = 200 << 20
"""Put as one file, and read back into memory that is there already."""

_MEASURING = """
import ast, json, sys
sys.path[:0] = json.loads(sys.argv[1])

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) << 10

def peak_of(action):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before
"""

_SCRIPT = """
from ocdbt_py.storage.location import resolve
place = resolve(sys.argv[2], storage_options=ast.literal_eval(sys.argv[3]))
storage, path = place.storage, place.path + "/f"
writable = storage.capabilities.writable
if writable:
    storage.put(place.path + "/warm", [b"x" * (2 << 20)])
storage.read_many([(place.path + "/warm", 0, 2 << 20)])
data = bytearray(sys.argv[4].encode() * (int(sys.argv[5]) >> 4))
put = peak_of(lambda: storage.put(path, [memoryview(data)[:7], memoryview(data)[7:]])) if writable else 0
target = bytearray(b"-" * len(data))
read = peak_of(lambda: storage.read_many_into([(path, 0, memoryview(target))]))
assert target == data
if writable:
    storage.delete(path)
print(json.dumps([put, read]))
"""


def prepare(directory: Path) -> None:
    """What a storage that cannot be written must have at the place."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "warm").write_bytes(b"x" * (2 << 20))
    (directory / "f").write_bytes(_PATTERN * (PUT_AND_READ // len(_PATTERN)))


def beside_the_data(url: str, storage_options: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes at the peak of putting and of reading, in a process of its own. Linux only."""
    put, read = peaks(_SCRIPT, url, repr(dict(storage_options)), _PATTERN.decode(), PUT_AND_READ)
    return put, read


def peaks(script: str, *arguments: object) -> list[int]:
    """What a script prints as JSON that calls ``peak_of``; ``sys.argv`` has the arguments from 2 on. Linux only.

    ``peak_of(action)`` is how many bytes the process grew at the peak while ``action()`` ran.
    """
    root = Path(__file__).parents[1]
    folders = json.dumps([str(root), str(root / "backends")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MEASURING + script, folders, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing was left open either
    found: list[int] = json.loads(done.stdout)
    return found
