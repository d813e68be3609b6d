"""Save once more before the job ends.

A scheduler that takes a job away says so first, with a signal. :class:`StopSignals` turns it into a request to save the
next step, whatever the policy says, and the manager tells when that has been met::

    with CheckpointManager("gs://bucket/run") as manager, StopSignals(manager):
        for step in range(start, steps):
            state = train(state)
            manager.save(step, state)
            if manager.reached_preemption(step):
                break

Leaving the first ``with`` waits for the save. The time between the signal and the end must be enough for one step and
one save:

* Slurm: ``#SBATCH --signal=TERM@120`` sends SIGTERM to all processes of a step 120 seconds before the time limit (and
  with ``--requeue`` a preempted job starts again). Start the program with ``srun``, or put ``exec`` before it in the
  batch script and use ``--signal=B:TERM@120``: a shell that waits does not hand signals on.
* Kubernetes: ``terminationGracePeriodSeconds: 120`` in the pod's spec (30 without it). SIGTERM goes to process 1 of the
  container: write ``command`` as a list, or ``exec`` in the shell script, so that this is the program.
* A second signal of the same kind does what it did before, so that a program that hangs can still be ended.

Where JAX runs its preemption service, with ``jax.distributed``, that catches SIGTERM itself and tells all processes of
one step at which they stop; ``manager.reached_preemption(step)`` hears it, and the default save policy too.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from ocdbt_py.errors import InvalidArgumentError

__all__ = ["SaveRequests", "StopSignals", "jax_reached_preemption"]


class SaveRequests:
    """How often somebody has asked for a save, and which of these requests have been served.

    A signal handler may interrupt the main thread between any two of its steps. So each number has one writer: the
    handler counts, the one who saves notes how far the count was when it took what it saves.
    """

    def __init__(self) -> None:
        self.count = 0
        self.served_at: int | None = None
        self._served = 0
        self._served_before = 0
        self._asked: tuple[int | None, bool] = None, False

    def add(self) -> None:
        self.count += 1

    @property
    def is_pending(self) -> bool:
        return self.count > self._served

    def are_for(self, step: int) -> bool:
        """Whether a request counts for this step. One that comes after the first who asks is for the next step, unless
        what was saved as this one was made later still."""
        if self._asked[0] != step:
            self._asked = step, self.is_pending
        return self._asked[1] or self.served_at == step

    def settle(self, step: int, are_for: bool) -> None:
        """What all processes have agreed on for this step."""
        self._asked = step, are_for

    def serve(self, count: int, step: int) -> None:
        """The first ``count`` requests are met by saving this step."""
        if count > self._served:
            self.served_at = step
        self._served_before, self._served = self._served, count

    def take_back(self) -> None:
        """That save failed."""
        self._served, self.served_at = self._served_before, None


class _Saver(Protocol):
    def request_save(self) -> None: ...


class StopSignals:
    """While entered, a signal requests a save of each manager, once. In the main thread only.

    The handler adds to a number in each manager and takes no lock, so it may come at any moment. ``received``: whether
    it came; what it asked for is perhaps not saved yet.
    """

    def __init__(self, *managers: _Saver, signals: Sequence[int] = (signal.SIGTERM,)) -> None:
        self._managers = managers
        self._signals = signals
        self._before: dict[int, Any] = {}
        self.received = False

    def __enter__(self) -> Self:
        try:
            for number in self._signals:
                self._before[number] = signal.signal(number, self._handle)
        except ValueError as error:
            raise InvalidArgumentError(
                f"Signals are handled in the main thread, and of the system's: {error}"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        before = self._before.pop(number, signal.SIG_DFL)
        signal.signal(number, signal.SIG_DFL if before is None else before)
        for manager in self._managers:
            manager.request_save()


def jax_reached_preemption(step: int) -> bool:
    """Whether JAX's preemption service has chosen this step as the last; False where there is no such service."""
    state: Any = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    if getattr(state, "client", None) is None:
        return False
    from jax.experimental import multihost_utils

    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # it is switched off
        return False
