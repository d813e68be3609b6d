"""Where steps lie and what they are called: ``ocp.path``, of which :mod:`step` is here."""

from ocdbt_py.interop.orbax.path import step

__all__ = ["step"]
