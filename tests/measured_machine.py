"""A machine as results of the benchmarks describe it."""

from __future__ import annotations

from typing import Any

MACHINE: dict[str, Any] = {
    "cpu": "A chip",
    "cores": 2,
    "memory_gib": 8,
    "system": "Linux 6",
    "python": "3.11",
    "packages": {"numpy": "2.0"},
    "date": "2026-01-02",
}
