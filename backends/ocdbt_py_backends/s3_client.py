"""What a client of S3 costs to make, brought down to what it needs.

botocore learns the service, its endpoints and its errors from descriptions in JSON, a tenth of a second of reading them
in every process. Some of it nobody needs: to find the description of one service it looks into the directories of all
four hundred, twice; and the certificates of all authorities are read for an endpoint that shows none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.loaders import Loader, create_loader

__all__ = ["begin_session", "without_certificates"]


class _Descriptions(Loader):  # type: ignore[misc]  # botocore has no types
    """Takes every directory of descriptions for a service; that one has not what it is asked for shows on reading."""

    def list_available_services(self, type_name: str) -> list[str]:
        return sorted({name for path in self.search_paths if os.path.isdir(path) for name in os.listdir(path)})


def begin_session(fs: Any) -> None:
    """Give a filesystem that has no session yet the one that it would make itself, but for what finds descriptions."""
    if getattr(fs, "session", fs) is not None or not hasattr(fs, "_session_is_owned"):
        return
    session = AioSession(**fs.kwargs)
    usual = create_loader(session.get_config_variable("data_path"))
    session.register_component("data_loader", _Descriptions(usual.search_paths, include_default_search_paths=False))
    fs.session, fs._session_is_owned = session, True


def without_certificates(options: Mapping[str, Any]) -> dict[str, Any]:
    """``client_kwargs`` of these options, which ask for no certificates where the endpoint is one of plain HTTP."""
    arguments = dict(options.get("client_kwargs") or {})
    endpoint = arguments.get("endpoint_url") or options.get("endpoint_url") or ""
    if str(endpoint).startswith("http://"):
        arguments.setdefault("verify", False)
    return arguments
