"""``ocdbt info URL``: what is there, how it is stored, how much of it."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.cli.leaves import leaves
from ocdbt_py.cli.target import Target, add_item_argument, open_target, version_row
from ocdbt_py.database import Database
from ocdbt_py.storage.location import Place
from ocdbt_py.view.results import CheckpointInfo, DatabaseInfo, Info
from ocdbt_py.view.spelling import spelled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_item_argument(parser)


def run(arguments: argparse.Namespace) -> Info:
    target = open_target(arguments)
    files, stored_bytes = _stored(target.place)
    return Info(
        url=target.url,
        kind=target.kind,
        layout=target.found.kind.value,
        files=files,
        stored_bytes=stored_bytes,
        database=None if target.database is None else _database(target.database),
        checkpoint=None if target.checkpoint is None else _checkpoint(target, target.checkpoint),
    )


def _stored(place: Place) -> tuple[int | None, int | None]:
    """Files and bytes below a place, where its storage can list."""
    if not place.storage.capabilities.list:
        return None, None
    sizes = [found.size or 0 for found in place.storage.list(place.path + "/", deep=True)]
    return len(sizes), sum(sizes)


def _checkpoint(target: Target, checkpoint: Checkpoint) -> CheckpointInfo:
    items = [leaf.item for leaf in leaves(checkpoint)]
    arrays = [item for item in items if item.shape is not None]
    return CheckpointInfo(
        items=tuple(map(spelled, sorted(target.found.items))),
        leaves=len(items),
        arrays=len(arrays),
        parameters=sum(math.prod(item.shape or ()) for item in arrays),
        nbytes=sum(item.nbytes or 0 for item in arrays),
        custom_metadata=checkpoint.custom_metadata or None,
    )


def _database(database: Database) -> DatabaseInfo:
    return DatabaseInfo(
        config=asdict(database.config),
        version=version_row(database.version),
        versions=sum(1 for _ in database.versions()),
    )
