"""Two managers side by side: the same things done to Orbax's and to ours, under one clock.

A :class:`Run` is one of the two: a directory, and whatever manager is open on it. What it answers is made comparable by
:func:`outcome`: a value as it is, an error by the first built-in class that it is. Neither waits for time to pass:
:class:`Clock` stands in for the clocks of the modules that ask for one.
"""

from __future__ import annotations

import datetime
import shutil
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest


class Clock:
    """The time, as one has set it. Has what is asked of the modules ``time`` and ``datetime``."""

    def __init__(self) -> None:
        self.ns = 1_800_000_000 * 10**9

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)

    def time_ns(self) -> int:
        return self.ns

    def time(self) -> float:
        return self.time_ns() / 1e9

    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time(), datetime.UTC)

    def as_datetime_module(self) -> types.SimpleNamespace:
        clock = self

        class Datetime(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return clock.now()

        return types.SimpleNamespace(datetime=Datetime, timedelta=datetime.timedelta, timezone=datetime.timezone)

    def as_time_module(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(**{**vars(time), "time": self.time, "time_ns": self.time_ns})


@contextmanager
def one_clock() -> Iterator[Clock]:
    """A clock that both managers go by while this lasts."""
    import orbax.checkpoint.checkpoint_manager as their_manager
    from orbax.checkpoint._src.checkpoint_managers import preservation_policy
    from orbax.checkpoint._src.path import atomicity

    import ocdbt_py.checkpoint.save as our_save
    import ocdbt_py.interop.orbax.manager as our_manager
    from ocdbt_py.manager.root import Root

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(their_manager, "datetime", clock.as_datetime_module())
        patch.setattr(preservation_policy, "datetime", clock.as_datetime_module())
        patch.setattr(atomicity, "time", clock.as_time_module())
        patch.setattr(our_save, "time", clock.as_time_module())
        patch.setattr(our_manager, "Root", partial(Root, clock=clock))
        yield clock


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned; of an error, which built-in error it is."""
    try:
        return call()
    except Exception as error:
        return Raised(error)


class Raised:
    """An error. Equal to another if Orbax's first built-in class is a class of the other's too."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def built_in(self) -> type[Any]:
        return next(cls for cls in type(self.error).__mro__ if cls.__module__ == "builtins")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and (
            isinstance(other.error, self.built_in) or isinstance(self.error, other.built_in)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"raised {type(self.error).__name__}: {self.error}"


class Run:
    """A directory of steps, and a manager on it made by ``library``: Orbax, or ours."""

    def __init__(self, library: Any, directory: Path, options: Callable[[Any], dict[str, Any]]) -> None:
        self.library = library
        self.directory = directory
        self.settings = options
        self.manager: Any = None
        self.open()

    def open(self) -> None:
        options = self.library.CheckpointManagerOptions(**self.settings(self.library))
        self.manager = self.library.CheckpointManager(self.directory, options=options)

    def reopen(self) -> None:
        self.manager.close()
        self.open()

    def save(self, step: int, value: Any, **kwargs: Any) -> Any:
        saved = self.manager.save(step, args=self.library.args.JsonSave(value), **kwargs)
        self.manager.wait_until_finished()
        return saved

    def restore(self, step: int | None) -> Any:
        return self.manager.restore(step, args=self.library.args.JsonRestore())

    def directories(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.is_dir())

    def remove(self, name: str) -> None:
        shutil.rmtree(self.directory / name, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """All that can be asked without doing anything."""
        manager = self.manager
        steps = manager.all_steps()
        return {
            "directories": self.directories(),
            "all_steps": steps,
            "latest": manager.latest_step(),
            "best": manager.best_step(),
            "metrics": [manager.metrics(step) for step in steps],
            "saving": manager.is_saving_in_progress(),
            "next": [manager.should_save(step) for step in range(max(steps, default=0), max(steps, default=0) + 3)],
        }
