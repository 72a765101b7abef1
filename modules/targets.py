"""Our fields in TUF targets: the path of a module's manifest, and the `custom` part in both repositories.

The image repository says what may run where (signed by publishers); the director says what this device shall run
(signed by the hub for one device). Used by the hub to sign and by the agent to check. Source: Uptane Standard 2.1,
custom metadata about images and the directing of installation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from firmware_profiles.profile import NAME_PATTERN
from modules.arms import check_share
from modules.errors import MALFORMED, ModuleError, TargetError
from modules.manifest import SamplingPolicy

DEVICE_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{2,62}$"
DEVICE_ID_FIELD = "device_id"  # top-level field of the director's targets, present also when nothing is targeted
# "shadow" is fed what the serving version is fed, and its answers go to nobody; "arm" answers a share of the requests.
Mode = Literal["serve", "off", "shadow", "arm"]
CANDIDATES: frozenset[str] = frozenset({"shadow", "arm"})  # modes beside a version that serves
# A release of the agent runs with all of the agent's rights. So it has a name and a publisher of its own, which only
# the offline targets key can delegate: who may sign models may not sign agents.
AGENT_MODULE = "mooring-agent"
AGENT_PUBLISHER = "agents"
_Custom = TypeVar("_Custom", "ImageCustom", "_DirectorWire")


class TargetPath(msgspec.Struct, frozen=True):
    """`modules/<publisher>/<name>/<version>/<profile>.json`: one builder, one parser."""

    publisher: str
    name: str
    version: int
    profile: str

    def __str__(self) -> str:
        return f"modules/{self.publisher}/{self.name}/{self.version}/{self.profile}.json"

    @classmethod
    def parse(cls, text: str) -> TargetPath:
        """Raises TargetError on anything else than a path that `str` made."""
        match = re.fullmatch(r"modules/([^/]+)/([^/]+)/([1-9][0-9]{0,8})/([^/]+)\.json", text)
        if match is None or not all(re.fullmatch(NAME_PATTERN, match[i]) for i in (1, 2, 4)):
            raise TargetError(f"target path: expected modules/PUBLISHER/NAME/VERSION/PROFILE.json, got {text[:120]!r}")
        return cls(match[1], match[2], int(match[3]), match[4])

    @staticmethod
    def pattern(publisher: str) -> str:
        """The delegation pattern that covers all modules of a publisher (TUF: `*` does not cross a slash)."""
        return f"modules/{publisher}/*/*/*"


class ImageCustom(msgspec.Struct, frozen=True):
    """In the image repository: where a module may run, and its place in the order of releases."""

    hardware_ids: tuple[str, ...]
    release_counter: int


class DirectorCustom(msgspec.Struct, frozen=True):
    """In a device's director repository: what this device shall do with the module.

    `deployment` names the rollout that asked for it and comes back in the device's report. `share` and `salt` are for
    candidates: which part of the requests, and how it is drawn (`modules.arms`).
    """

    hardware_id: str
    release_counter: int
    deployment: str
    mode: Mode = "serve"
    sampling: SamplingPolicy | None = None
    config: Mapping[str, Any] = {}
    share: float = 1.0
    salt: str = ""

    def __post_init__(self) -> None:
        check_share(self.share, self.salt)


class _DirectorWire(msgspec.Struct, frozen=True):
    """DirectorCustom as it is signed: what may hold fractions is JSON text, because TUF's canonical JSON has none.

    `share` and `salt` stand there for candidates only.
    """

    hardware_id: str
    release_counter: int
    deployment: str
    mode: Mode = "serve"
    sampling: str = "null"
    config: str = "{}"
    share: str = "1.0"
    salt: str = ""


def to_custom(fields: ImageCustom | DirectorCustom) -> dict[str, Any]:
    """The value for TUF's `custom` key: plain JSON types without fractions."""
    custom: dict[str, Any] = msgspec.to_builtins(fields)
    if isinstance(fields, DirectorCustom):
        custom["sampling"] = msgspec.json.encode(fields.sampling, order="sorted").decode()
        custom["config"] = msgspec.json.encode(fields.config, order="sorted").decode()
        share, salt = custom.pop("share"), custom.pop("salt")
        if fields.mode in CANDIDATES:
            custom |= {"share": msgspec.json.encode(share).decode(), "salt": salt}
    return custom


def image_custom(custom: object) -> ImageCustom:
    """Raises TargetError when a field is missing or of the wrong type."""
    return _convert(custom, ImageCustom, "image")


def director_custom(custom: object) -> DirectorCustom:
    """Raises TargetError when a field is missing or of the wrong type."""
    wire = _convert(custom, _DirectorWire, "director")
    try:
        sampling = msgspec.json.decode(wire.sampling, type=SamplingPolicy | None)
        config = msgspec.json.decode(wire.config, type=dict[str, Any])
        share = msgspec.json.decode(wire.share, type=float)
    except MALFORMED as error:
        raise TargetError(f"director target: {error}") from error
    return DirectorCustom(
        wire.hardware_id, wire.release_counter, wire.deployment, wire.mode, sampling, config, share, wire.salt
    )


def check_device_id(text: str) -> str:
    """The id itself. Raises TargetError: an id is a topic level, a certificate name and a path."""
    if not re.fullmatch(DEVICE_ID_PATTERN, text):
        raise TargetError(f"device id: expected {DEVICE_ID_PATTERN}, got {text[:80]!r}")
    return text


def _convert(custom: object, kind: type[_Custom], repository: str) -> _Custom:
    try:
        return msgspec.convert(custom, kind)
    except (msgspec.ValidationError, ModuleError) as error:
        raise TargetError(f"{repository} target: {error}") from error
