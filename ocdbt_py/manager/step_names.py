"""How the directory of a step is called: ``7``, ``0007``, ``ckpt_7``.

The rules are Orbax's (``orbax/checkpoint/_src/path/step.py``), so that both find the same steps in one directory: an
underscore always follows the prefix, zeros are padding only where a length was chosen, and a step with more digits than
that is written with all of them. Anything with the two methods of :class:`NameFormat` can take the place of these.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ocdbt_py.checkpoint.layout import TEMPORARY
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["CompositeNames", "NameFormat", "StepNames", "step_number"]


@runtime_checkable
class NameFormat(Protocol):
    """Names of steps, one way and the other."""

    def name(self, step: int) -> str:
        """What the directory of this step is called."""

    def step(self, name: str) -> int | None:
        """Which step a directory of this name is; None if it is none."""


@dataclass(frozen=True)
class StepNames:
    """``[PREFIX_]DIGITS``, padded with zeros to ``fixed_length`` digits where that is given.

    >>> StepNames("ckpt", 6).name(42), StepNames().step("42"), StepNames().step("042")
    ('ckpt_000042', 42, None)
    """

    prefix: str | None = None
    fixed_length: int | None = None
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prefix is not None and (not isinstance(self.prefix, str) or "/" in self.prefix or "\0" in self.prefix):
            raise InvalidArgumentError(f"step_prefix is a str without '/', not {self.prefix!r}")
        if self.prefix is not None and TEMPORARY in self.prefix:
            raise InvalidArgumentError(f"step_prefix {self.prefix!r} marks unfinished checkpoints; choose another")
        if self.fixed_length is not None and (type(self.fixed_length) is not int or self.fixed_length < 0):
            raise InvalidArgumentError(
                f"step_format_fixed_length is a number of digits or None, not {self.fixed_length!r}"
            )
        n = self.fixed_length
        digits = f"0[0-9]{{{n - 1}}}|[1-9][0-9]{{{n - 1},}}" if n else "0|[1-9][0-9]*"
        object.__setattr__(self, "_pattern", re.compile(f"{re.escape(self._before)}({digits})", re.DOTALL))

    @property
    def _before(self) -> str:
        return "" if self.prefix is None else f"{self.prefix}_"

    def name(self, step: int) -> str:
        return f"{self._before}{step_number(step):0{self.fixed_length or 0}d}"

    def step(self, name: str) -> int | None:
        found = self._pattern.fullmatch(name)
        try:
            return None if found is None else int(found[1])
        except ValueError:  # more digits than Python converts
            return None


@dataclass(frozen=True)
class CompositeNames:
    """Writes one format, and reads several: earlier ones win where two name the same step."""

    write: NameFormat
    read: Sequence[NameFormat]

    def __post_init__(self) -> None:
        if self.write not in self.read:
            raise InvalidArgumentError("The format that is written must be among those that are read")

    def name(self, step: int) -> str:
        return self.write.name(step)

    def step(self, name: str) -> int | None:
        return next((found for names in self.read if (found := names.step(name)) is not None), None)


def step_number(step: Any) -> int:
    """A step as ``int``, from that or a whole number of NumPy or JAX."""
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidTypeError(f"A step is a whole number, not {type(step).__name__}") from None
    if number < 0:
        raise InvalidArgumentError(f"Steps count from 0, and {number} is below")
    return number
