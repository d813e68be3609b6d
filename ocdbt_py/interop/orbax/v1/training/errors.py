"""The errors of :class:`~ocdbt_py.interop.orbax.v1.training.checkpointer.Checkpointer`, where the v1 API has them."""

from ocdbt_py.interop.orbax.errors import StepAlreadyExistsError, StepNotFoundError

__all__ = ["StepAlreadyExistsError", "StepNotFoundError"]
