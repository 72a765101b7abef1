"""What is configured for a module, as a value: the fleet's part, overrides by query, overrides by device. Pure.

The rule: a device's configuration is {} with the fleet's part, then each override whose query it matches, in their
order, then its own, each applied as a JSON Merge Patch (RFC 7396): objects are merged, null takes a name away,
everything else replaces. Changed by operators through `changes`, resolved for devices by `resolving`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from cloud_hub.errors import BadRequest
from modules.configuration import MAX_CONFIG_BYTES, check_config
from modules.errors import ConfigurationError
from modules.targets import DEVICE_ID_PATTERN

MAX_TARGETS: Final = 64
MAX_DEVICES: Final = 2000
MAX_DOCUMENT_BYTES: Final = 512 * 1024
MAX_SHOWN: Final = 500  # differences


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the devices that match `target`."""

    target: str
    patch: dict[str, Any]  # whatever a configuration holds

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise ValueError("target: expected a query for devices, such as group = pilot")


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One revision's content. Later overrides win over earlier ones, a device's own over all."""

    fleet: dict[str, Any] = {}
    targets: tuple[Override, ...] = ()
    devices: dict[str, dict[str, Any]] = {}

    def own(self, device: str) -> dict[str, Any] | None:
        return self.devices.get(device)


class ConfigDifference(msgspec.Struct, frozen=True):
    """One name that two revisions have differently. `layer` is fleet, `target ...` or `device ...`; `path` a JSON path;
    `before` and `after` are absent where there is nothing.
    """

    layer: str
    path: str
    before: Any | msgspec.UnsetType = msgspec.UNSET  # whatever a configuration holds
    after: Any | msgspec.UnsetType = msgspec.UNSET


def merge_patch(target: object, patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396, section 2, for patches that are objects. Neither argument is changed."""
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value) if isinstance(value, dict) else value
    return merged


def resolve(document: Document, matching: Sequence[int], device: str) -> dict[str, Any]:
    """The configuration of a device that matches the targets of these numbers (ascending)."""
    config = merge_patch({}, document.fleet)
    for index in matching:
        config = merge_patch(config, document.targets[index].patch)
    own = document.own(device)
    return merge_patch(config, own) if own is not None else config


def check(document: Document) -> Document:
    """The document itself. Raises BadRequest `configuration-invalid`."""
    size = len(msgspec.json.encode(document))
    names = [override.target for override in document.targets]
    for what, got, most in (
        ("overrides by query", len(names), MAX_TARGETS),
        ("overrides by device", len(document.devices), MAX_DEVICES),
        ("bytes of a revision", size, MAX_DOCUMENT_BYTES),
    ):
        if got > most:
            raise _invalid(f"expected at most {most} {what}, got {got}; nothing was changed")
    for device in document.devices:
        if not re.fullmatch(DEVICE_ID_PATTERN, device):
            raise _invalid(f"expected device ids, got {device[:80]!r}; nothing was changed")
    if len(set(names)) != len(names):
        raise _invalid("two overrides have the same target; nothing was changed")
    for layer, patch in layers(document):
        try:
            check_config(patch)
        except ConfigurationError as error:
            raise _invalid(
                f"{layer}: {error} (at most {MAX_CONFIG_BYTES} bytes in each); nothing was changed"
            ) from error
    return document


def layers(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part with its name, in the order in which they apply."""
    yield "fleet", document.fleet
    for override in document.targets:
        yield f"target {override.target}", override.patch
    for device, patch in sorted(document.devices.items()):
        yield f"device {device}", patch


def differences(before: Document, after: Document) -> list[ConfigDifference]:
    """By layer and path, at most MAX_SHOWN. The order of targets counts as a difference of its own."""
    old, new = dict(layers(before)), dict(layers(after))
    found = [
        difference
        for layer in sorted(old.keys() | new.keys(), key=_place)
        for difference in _between(layer, "$", old.get(layer, msgspec.UNSET), new.get(layer, msgspec.UNSET))
    ]
    order = [[one.target for one in document.targets] for document in (before, after)]
    if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
        found.append(ConfigDifference("targets", "order", *order))
    return found[:MAX_SHOWN]


def _between(layer: str, path: str, before: object, after: object) -> Iterator[ConfigDifference]:
    """Objects name by name, everything else as a whole."""
    if any(value is not msgspec.UNSET and not isinstance(value, dict) for value in (before, after)):
        if _text(before) != _text(after):
            yield ConfigDifference(layer, path, before, after)
        return
    old, new = (value if isinstance(value, dict) else {} for value in (before, after))
    for name in sorted(old.keys() | new.keys()):
        here, there = old.get(name, msgspec.UNSET), new.get(name, msgspec.UNSET)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _between(layer, f"{path}.{name}", here, there)
        elif _text(here) != _text(there):
            yield ConfigDifference(layer, f"{path}.{name}", here, there)


def _text(value: object) -> bytes:
    """For comparing: 1, 1.0 and true are not the same to a module."""
    return b"" if value is msgspec.UNSET else msgspec.json.encode(value, order="sorted")


def _place(layer: str) -> tuple[int, str]:
    return ("fleet", "target", "device").index(layer.partition(" ")[0]), layer


def to_document(stored: Mapping[str, Any]) -> Document:
    return msgspec.convert(stored, Document)


def _invalid(text: str) -> BadRequest:
    return BadRequest("configuration-invalid", text)
