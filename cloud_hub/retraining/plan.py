"""What a retraining plan says: when, on which data, by which command, what the candidate must show, and what then.

Pure values with their checks. Kept by `records`, followed by `runs`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from cloud_hub.query import parse
from cloud_hub.retraining.criteria import parse_criterion
from cloud_hub.rollouts.plan import Group
from firmware_profiles.profile import NAME_PATTERN
from modules.bundle import check_digest, check_path
from modules.errors import ChunkError

Trigger = Literal["drift", "quality", "concept", "performance"]  # kinds of alerts
MAX_ARGUMENTS: Final = 256
MAX_ARGUMENT_CHARS: Final = 8192
MAX_FILES: Final = 64
MAX_CRITERIA: Final = 32
DAY_S: Final = 86_400.0
IMAGE: Final = r"[a-z0-9][a-z0-9./_:-]{0,200}@sha256:[0-9a-f]{64}|sha256:[0-9a-f]{64}"
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=3650 * DAY_S)]


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`alerts`: kinds of alerts of the module after which a run starts, `settle_s` after the first of them, so that
    samples and labels can come. `every_s`: also so long after the last run; 0 does not. Never sooner than `pause_s`
    after the last run.
    """

    alerts: tuple[Trigger, ...] = ()
    settle_s: Seconds = 3600.0
    every_s: Seconds = 0.0
    pause_s: Seconds = DAY_S


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which samples: of the last `days`, and the rest as in `datasets.wishes.NewDataset`. A run with fewer labelled
    rows to train on than `least_labelled` ends without training.
    """

    days: Annotated[float, msgspec.Meta(gt=0.0, le=3650.0)] = 90.0
    target: str = ""
    strata: tuple[str, ...] = ()
    labelled_only: bool = True
    held_out: Annotated[float, msgspec.Meta(ge=0.01, le=0.9)] = 0.3
    base: str = ""
    base_path: str = ""
    least_labelled: Annotated[int, msgspec.Meta(ge=1)] = 50


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`command` is run as it is, without a shell; `files` (path -> digest of an upload) lie in its working folder, or
    it runs where the runner was started. With `image` it runs in that container, without a network unless `network`.
    It has `deadline_s`.
    """

    command: tuple[str, ...]
    files: dict[str, str] = {}
    image: str = ""
    network: bool = False
    deadline_s: Annotated[float, msgspec.Meta(ge=1.0, le=30 * DAY_S)] = 3600.0

    def __post_init__(self) -> None:
        lengths = [len(argument) for argument in self.command]
        if not 1 <= len(lengths) <= MAX_ARGUMENTS or max(lengths) > MAX_ARGUMENT_CHARS or not self.command[0]:
            raise ValueError(f"training.command: expected 1 to {MAX_ARGUMENTS} arguments, the first a program")
        if len(self.files) > MAX_FILES:
            raise ValueError(f"training.files: expected at most {MAX_FILES}, got {len(self.files)}")
        if self.image and not re.fullmatch(IMAGE, self.image):
            raise ValueError(f"training.image: expected NAME@sha256:DIGEST, got {self.image[:120]!r}")
        try:
            for path, sha256 in self.files.items():
                check_path(path)
                check_digest(sha256)
        except ChunkError as error:
            raise ValueError(f"training.files: {error}") from error


class Judging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the candidate must show on labelled rows that were held out, all of it, with `confidence`.

    `output` is what is judged, empty for the module's main one. With fewer than `least_rows` rows nothing is shown;
    groups with fewer than `least_group_rows` are not judged.
    """

    accept: tuple[str, ...]
    confidence: Annotated[float, msgspec.Meta(ge=0.5, lt=1.0)] = 0.95
    least_rows: Annotated[int, msgspec.Meta(ge=1)] = 50
    least_group_rows: Annotated[int, msgspec.Meta(ge=1)] = 30
    output: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.accept) <= MAX_CRITERIA:
            raise ValueError(f"judging.accept: expected 1 to {MAX_CRITERIA} criteria, got {len(self.accept)}")
        for text in self.accept:
            parse_criterion(text)


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rollout that an accepted candidate starts, as in `rollouts.controller.NewRollout`."""

    target: str
    groups: tuple[str, ...] = ("1", "20%", "rest")
    success_threshold: float = 100.0
    error_threshold: float = 0.0
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * DAY_S

    def __post_init__(self) -> None:
        parse(self.target)
        for group in self.groups:
            Group.parse(group)


class RetrainPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one module. `champion` is the version to beat, 0 for the one that most devices are to have. Without a
    `rollout` a run ends when the modules are signed.
    """

    name: str
    module: str
    training: Training
    judging: Judging
    when: When = When()
    data: Data = Data()
    rollout: Canary | None = None
    champion: Annotated[int, msgspec.Meta(ge=0)] = 0
    description: Annotated[str, msgspec.Meta(max_length=2000)] = ""

    def __post_init__(self) -> None:
        for field, value in (("name", self.name), ("module", self.module)):
            if not re.fullmatch(NAME_PATTERN, value):
                raise ValueError(f"{field}: expected {NAME_PATTERN}, got {value[:80]!r}")
