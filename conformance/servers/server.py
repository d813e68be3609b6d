"""A running storage server as the tests see it: where places are, and how each side reaches them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """``root`` is the URL below which tests have their places, ``endpoint`` where the server listens (``http://…``, or
    ``host:port``), ``environ`` what a process needs for TensorStore's driver to reach it.

    Picklable, so that spawned processes can have one.
    """

    name: str
    root: str
    endpoint: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    """Where the files below ``root`` are on the local disk, if they are."""
    driver: Json | None = None
    """TensorStore's key-value store of ``root``, a path of which ends in ``/``; None: it has no driver for this."""

    def url(self, name: str = "place") -> str:
        """A place nobody has used; it need not exist, and nothing is there."""
        return f"{self.root}/{name}-{secrets.token_hex(4)}"

    def tensorstore(self, url: str) -> Json | None:
        """TensorStore's key-value store of the directory that a URL of this server names."""
        if self.driver is None:
            return None
        return {**self.driver, "path": f"{self.driver['path']}{self.below(url)}/"}

    def local(self, url: str) -> Path:
        """Where that URL is on the local disk."""
        assert self.directory is not None, f"{self.name} keeps no files"
        return self.directory / self.below(url)

    def at(self, endpoint: str) -> Server:
        """The same server, reached at another endpoint: that of a proxy in front of it."""

        def moved(value: Any) -> Any:
            if isinstance(value, str):
                return value.replace(self.endpoint, endpoint)
            return {name: moved(each) for name, each in value.items()} if isinstance(value, Mapping) else value

        return Server(**{each.name: moved(getattr(self, each.name)) for each in fields(self)})

    def below(self, url: str) -> str:
        """The path of a URL, from the root."""
        assert url.startswith(f"{self.root}/"), f"{url} is not on {self.name}"
        return url.removeprefix(f"{self.root}/").rstrip("/")
