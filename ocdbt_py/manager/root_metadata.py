"""``ROOT/metadata/_ROOT_METADATA``: what a user says of a run as a whole, written once.

The first writer wins, as in Orbax: a run that is resumed with other metadata goes on with what stands there. Releases
before 0.10 called the file ``metadata`` and put the user's JSON into it directly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ocdbt_py.checkpoint.layout import child, read_file
from ocdbt_py.checkpoint.metadata import check_custom_metadata, decode_json
from ocdbt_py.errors import ConflictError, CorruptDataError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import ABSENT, ANY

__all__ = ["read_root_metadata", "write_root_metadata"]

_DIRECTORY = "metadata"
_FILE = "_ROOT_METADATA"
_OLD_FILE = "metadata"


def read_root_metadata(place: Place) -> dict[str, Any] | None:
    """The user's metadata of a root; None if there is none. Raises :class:`CorruptDataError`."""
    directory = child(place, _DIRECTORY)
    for name in (_FILE, _OLD_FILE):
        data = read_file(directory, name)
        if data is None:
            continue
        try:
            document = decode_json(data, name)
            if not isinstance(document, dict):
                raise CorruptDataError(f"{name} is not a JSON object", path=name)
        except CorruptDataError as error:
            raise error.located(url=directory.url) from None
        known = {key: document.pop(key, None) for key in ("internal_metadata", "custom_metadata")}
        custom = known["custom_metadata"]
        return document | (custom if isinstance(custom, dict) else {})
    return None


def write_root_metadata(place: Place, metadata: Mapping[str, Any]) -> None:
    """Write it, unless there is some. Raises :class:`InvalidTypeError` where JSON cannot hold it."""
    custom = check_custom_metadata(metadata)
    directory = child(place, _DIRECTORY)
    if read_file(directory, _FILE) is not None:
        return
    text = json.dumps({"internal_metadata": {}, "custom_metadata": custom}).encode()
    condition = ABSENT if directory.storage.capabilities.create else ANY
    with suppress(ConflictError):  # another run was faster
        directory.storage.write(f"{directory.path}/{_FILE}", [text], condition)
