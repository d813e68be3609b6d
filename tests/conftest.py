"""Generated cases are the same on every run and never timed, so that a slow machine fails nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("plain", deadline=None, derandomize=True)
settings.load_profile("plain")
