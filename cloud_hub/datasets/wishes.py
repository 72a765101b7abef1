"""Which samples a data set is to hold, and what a data set is. Pure values with their checks."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final

import msgspec

from cloud_hub.bounds import AnyVersion, RowId
from cloud_hub.query import parse
from cloud_hub.registry import ModelFile
from firmware_profiles.profile import NAME_PATTERN

MAX_NAMES: Final = 1000
MAX_BASE_PATH: Final = r"base\.[a-z0-9.]{1,16}"
TRAIN, HELDOUT, ABOUT = "train.parquet", "heldout.parquet", "dataset.json"


class NewDataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to build. Empty texts, lists and zeros mean any; times are seconds since the epoch by the devices' clocks.

    `target` is a tag query of devices. Samples that somebody asked for by hand are left out unless `asked`; they weigh
    nothing. `held_out` is the share of predictions, by the hash of `salt` and their id, that training must not see; the
    salt is the module's name where none is said, so every data set of a module holds out the same ones. `base` is the
    digest of an upload that goes along as `base_path`, such as what the model was trained on before. `upto` bounds the
    samples by the order in which they came.
    """

    name: str
    module: str
    version: AnyVersion = 0
    since: float = 0.0
    until: float = 0.0
    devices: tuple[str, ...] = ()
    target: str = ""
    strata: tuple[str, ...] = ()
    labelled_only: bool = False
    asked: bool = False
    held_out: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.2
    salt: Annotated[str, msgspec.Meta(max_length=200)] = ""
    base: str = ""
    base_path: str = ""
    upto: RowId = 0

    def __post_init__(self) -> None:
        for field, value in (("name", self.name), ("module", self.module)):
            if not re.fullmatch(NAME_PATTERN, value):
                raise ValueError(f"{field}: expected {NAME_PATTERN}, got {value[:80]!r}")
        if len(self.devices) > MAX_NAMES or len(self.strata) > MAX_NAMES:
            raise ValueError(f"devices, strata: expected at most {MAX_NAMES}; use a tag query for more")
        if self.until and self.since >= self.until:
            raise ValueError(f"since: expected less than until, got {self.since} and {self.until}")
        if bool(self.base) != bool(self.base_path) or (self.base and not re.fullmatch(MAX_BASE_PATH, self.base_path)):
            raise ValueError(
                f"base_path: expected a name like {MAX_BASE_PATH} with a base, got {self.base_path[:80]!r}"
            )
        if self.target:
            parse(self.target)

    def is_heldout(self, prediction_id: str) -> bool:
        """The same for one prediction in every data set with the same salt."""
        digest = hashlib.sha256(f"{self.salt or self.module}\n{prediction_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.held_out * 2**64


class ColumnType(msgspec.Struct, frozen=True):
    """A column of the Parquet files, in Arrow's words."""

    name: str
    type: str


class Dataset(msgspec.Struct, frozen=True):
    """A version of a data set. `query` has nothing left open: asked again of the same samples, it gives the same rows.

    `digest` is the SHA-256 over the digests of its files. `run` is the retraining run that it was built for, or empty.
    """

    name: str
    version: int
    module: str
    digest: str
    query: NewDataset
    rows: int
    heldout_rows: int
    labelled_rows: int
    first_at: float | None
    last_at: float | None
    columns: tuple[ColumnType, ...]
    files: tuple[ModelFile, ...]
    run: str
    author: str
    created_at: float

    @property
    def reference(self) -> str:
        """How a model version names it."""
        return f"dataset:{self.name}:{self.version}@{self.digest}"


def digest_of(files: tuple[ModelFile, ...]) -> str:
    """Over paths and digests, in order."""
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256(lines.encode()).hexdigest()
