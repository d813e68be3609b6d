"""Shardings as ``_sharding`` describes them: names of axes and numbers of devices, which need no device to be there.

Orbax's classes, by its names. :meth:`ShardingMetadata.to_jax_sharding` looks for the devices among those of this
process, and :class:`InvalidArgumentError`, a ``ValueError``, says which are missing.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ocdbt_py.checkpoint.metadata import SHARDING, decode_json
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError
from ocdbt_py.interop.orbax.jax_access import jax_if_installed, the_jax

__all__ = [
    "DeviceMetadata",
    "DeviceMetadataMesh",
    "NamedShardingMetadata",
    "ShardingMetadata",
    "SingleDeviceShardingMetadata",
    "from_jax_sharding",
    "sharding_metadata",
]


@dataclass
class DeviceMetadata:
    """A device, by its number."""

    id: int


@dataclass
class DeviceMetadataMesh:
    """The devices of a mesh, nested as the mesh is."""

    mesh: Any

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceMetadataMesh:
        return cls(_nested(data["mesh"], lambda device: DeviceMetadata(int(device["id"]))))

    @classmethod
    def from_jax_mesh(cls, mesh: Any) -> DeviceMetadataMesh:
        return cls(_nested(np.asarray(mesh.devices).tolist(), lambda device: DeviceMetadata(device.id)))

    def to_jax_device_mesh(self) -> Any:
        """JAX's devices, nested likewise."""
        devices = {device.id: device for device in the_jax("A sharding").devices()}

        def find(device: DeviceMetadata) -> Any:
            if device.id not in devices:
                raise InvalidArgumentError(
                    f"The array was saved on device {device.id}, and this process has {len(devices)} others: "
                    f"{sorted(devices)[:16]}. Restore it with a target whose shardings are on these"
                )
            return devices[device.id]

        return _nested(self.mesh, find)


def _nested(mesh: Any, make: Any) -> Any:
    return [_nested(each, make) for each in mesh] if isinstance(mesh, list | tuple) else make(mesh)


class ShardingMetadata(abc.ABC):
    """How an array was sharded when it was saved."""

    @classmethod
    @abc.abstractmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> ShardingMetadata:
        """The description of a sharding."""

    @abc.abstractmethod
    def to_jax_sharding(self) -> Any:
        """The sharding, on this process's devices."""

    @classmethod
    @abc.abstractmethod
    def from_deserialized_dict(cls, deserialized_dict: Mapping[str, Any]) -> ShardingMetadata:
        """From an entry of ``_sharding``."""

    @abc.abstractmethod
    def to_serialized_string(self) -> str:
        """An entry of ``_sharding``."""


@dataclass
class NamedShardingMetadata(ShardingMetadata):
    """``jax.sharding.NamedSharding``. Without ``device_mesh``, which old releases did not record: all devices."""

    shape: Any
    axis_names: list[str]
    partition_spec: tuple[Any, ...]
    axis_types: tuple[Any, ...] | None = None
    device_mesh: DeviceMetadataMesh | None = None

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> NamedShardingMetadata:
        mesh = jax_sharding.mesh
        return cls(
            shape=np.array(list(mesh.shape.values())),
            axis_names=list(mesh.axis_names),
            partition_spec=tuple(jax_sharding.spec),
            axis_types=tuple(mesh.axis_types),
            device_mesh=DeviceMetadataMesh.from_jax_mesh(mesh),
        )

    def to_jax_sharding(self) -> Any:
        jax = the_jax("A sharding")
        devices = jax.devices() if self.device_mesh is None else self.device_mesh.to_jax_device_mesh()
        try:
            mesh = np.asarray(devices).reshape(self.shape)
        except ValueError:
            raise InvalidArgumentError(
                f"The array was saved on {int(np.prod(self.shape))} devices, and this process has {len(devices)}. "
                "Restore it with a target whose shardings are on these"
            ) from None
        spec = [tuple(part) if isinstance(part, list) else part for part in self.partition_spec]
        try:
            types = None if self.axis_types is None else _axis_types([str(kind) for kind in self.axis_types])
            return jax.sharding.NamedSharding(
                jax.sharding.Mesh(mesh, tuple(self.axis_names), axis_types=types), jax.sharding.PartitionSpec(*spec)
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"The sharding that was recorded cannot be made: {error!r:.200}; give one in the target"
            ) from None

    @classmethod
    def from_deserialized_dict(cls, deserialized_dict: Mapping[str, Any]) -> NamedShardingMetadata:
        types = deserialized_dict.get("axis_types")
        mesh = deserialized_dict.get("device_mesh")
        return cls(
            shape=np.array(deserialized_dict["shape"], int),
            axis_names=list(deserialized_dict["axis_names"]),
            partition_spec=tuple(deserialized_dict["partition_spec"]),
            axis_types=_axis_types(types) if types else None,
            device_mesh=DeviceMetadataMesh.from_dict(mesh) if mesh else None,
        )

    def to_serialized_string(self) -> str:
        described: dict[str, Any] = {
            "sharding_type": "NamedSharding",
            "shape": np.asarray(self.shape).tolist(),
            "axis_names": self.axis_names,
        }
        if self.axis_types is not None:
            described["axis_types"] = [str(kind) for kind in self.axis_types]
        described["partition_spec"] = self.partition_spec
        if self.device_mesh is not None:
            described["device_mesh"] = {"mesh": _nested(self.device_mesh.mesh, lambda device: {"id": device.id})}
        return json.dumps(described)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedShardingMetadata) and self._known() == other._known()

    def _known(self) -> tuple[Any, ...]:
        spec = [list(part) if isinstance(part, tuple) else part for part in self.partition_spec]
        return np.asarray(self.shape).tolist(), self.axis_names, spec, self.axis_types, self.device_mesh

    __hash__ = None  # type: ignore[assignment]


def _axis_types(names: Sequence[str]) -> tuple[Any, ...]:
    """JAX's own, or while there is none the names of them."""
    jax = jax_if_installed()
    if jax is None or not hasattr(jax.sharding, "AxisType"):
        return tuple(names)
    known = {str(kind): kind for kind in jax.sharding.AxisType}
    return tuple(known[name] for name in names)


@dataclass
class SingleDeviceShardingMetadata(ShardingMetadata):
    """``jax.sharding.SingleDeviceSharding``: ``device_str`` is what JAX prints of the device."""

    device_str: str

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> SingleDeviceShardingMetadata:
        return cls(str(next(iter(jax_sharding.device_set))))

    def to_jax_sharding(self) -> Any:
        jax = the_jax("A sharding")
        devices = {_device_name(str(device)): device for device in jax.local_devices()}
        device = devices.get(_device_name(self.device_str))
        if device is None:
            raise InvalidArgumentError(
                f"The array was saved on the device {self.device_str!r}, and this process has {sorted(devices)[:16]}. "
                "Restore it with a target whose shardings are on these"
            )
        return jax.sharding.SingleDeviceSharding(device)

    @classmethod
    def from_deserialized_dict(cls, deserialized_dict: Mapping[str, Any]) -> SingleDeviceShardingMetadata:
        return cls(str(deserialized_dict["device_str"]))

    def to_serialized_string(self) -> str:
        return json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": self.device_str})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SingleDeviceShardingMetadata) and _device_name(self.device_str) == _device_name(
            other.device_str
        )

    __hash__ = None  # type: ignore[assignment]


def _device_name(text: str) -> str:
    """JAX spelled the devices of a CPU otherwise before 0.10."""
    return text.replace("TFRT_CPU_", "cpu:")


_CLASSES: dict[str, type[ShardingMetadata]] = {
    "NamedSharding": NamedShardingMetadata,
    "SingleDeviceSharding": SingleDeviceShardingMetadata,
}


def from_jax_sharding(jax_sharding: Any) -> ShardingMetadata | None:
    """The description of a sharding; None of one that Orbax does not record."""
    described = _CLASSES.get(type(jax_sharding).__name__)
    return None if described is None else described.from_jax_sharding(jax_sharding)


def sharding_metadata(described: Mapping[str, Any] | str | bytes) -> ShardingMetadata:
    """From an entry of ``_sharding``: its text, or what that says.

    Raises :class:`InvalidArgumentError` for a kind that JAX no longer has, :class:`UnsupportedError` for others, and
    :class:`CorruptDataError`.
    """
    if isinstance(described, str | bytes):
        described = decode_json(described.encode() if isinstance(described, str) else described, SHARDING)
    if not isinstance(described, Mapping):
        raise CorruptDataError(f"An entry of {SHARDING} is no JSON object", path=SHARDING)
    kind = described.get("sharding_type")
    if kind == "PositionalSharding":
        raise InvalidArgumentError("The array lay on a PositionalSharding, which JAX has no more; give a sharding")
    if not isinstance(kind, str):
        raise CorruptDataError(f"An entry of {SHARDING} does not say of which kind it is", path=SHARDING)
    if kind not in _CLASSES:
        raise UnsupportedError(f"A sharding of the kind {kind[:80]!r} is not known here; give one in the target")
    try:
        return _CLASSES[kind].from_deserialized_dict(described)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptDataError(f"{SHARDING} has a {kind} that makes no sense: {error!r}"[:300], path=SHARDING) from None
