"""Models and their versions: what was registered, by whom, from what, and its files by digest.

A version never changes; its number counts up per name and is never used again. Bytes are the blobs' business,
building modules is packaging's. Called by `api.models` and `packaging`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.datasets.references import check_references
from cloud_hub.errors import BadRequest, Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import (
    assignments,
    model_counters,
    model_files,
    model_versions,
    modules,
    patches,
    rollouts,
)
from firmware_profiles.profile import NAME_PATTERN
from modules.bundle import check_path
from modules.errors import ChunkError

MAX_FILES: Final = 64
MAX_TAGS: Final = 64
MAX_DATASETS: Final = 64
MAX_TEXT: Final = 500
MAX_DESCRIPTION: Final = 10_000
TAG_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
MAX_LISTED: Final = 500


class NewModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a publisher says about a model. `datasets` are references in the publisher's own words, or
    dataset:NAME:VERSION@SHA256 of a data set on this hub, which must be there. `mlflow_run` is a run's id in the MLflow
    server at `mlflow_uri`; `parent` is the model version (NAME:VERSION) that this one was trained from.
    """

    name: str
    description: str = ""
    author: str = ""
    git_commit: str = ""
    training_run: str = ""
    datasets: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    mlflow_run: str = ""
    mlflow_uri: str = ""
    parent: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise ValueError(f"name: expected {NAME_PATTERN}, got {self.name[:80]!r}")
        _check_length("description", self.description, MAX_DESCRIPTION)
        for field in ("author", "git_commit", "training_run", "mlflow_run", "mlflow_uri", "parent"):
            _check_length(field, getattr(self, field), MAX_TEXT)
        if len(self.datasets) > MAX_DATASETS:
            raise ValueError(f"datasets: expected at most {MAX_DATASETS}, got {len(self.datasets)}")
        for dataset in self.datasets:
            _check_length("datasets", dataset, MAX_TEXT)
        check_tags(self.tags)


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model version. Size in bytes."""

    path: str
    size: int
    sha256: str


class ModelVersion(msgspec.Struct, frozen=True):
    """A registered model version. `created_at` is seconds since the epoch."""

    name: str
    version: int
    description: str
    author: str
    git_commit: str
    training_run: str
    datasets: tuple[str, ...]
    tags: dict[str, str]
    created_at: float
    files: tuple[ModelFile, ...]
    mlflow_run: str = ""
    mlflow_uri: str = ""
    parent: str = ""

    def file(self, path: str) -> ModelFile:
        """Raises NotFound `file-not-found`."""
        for file in self.files:
            if file.path == path:
                return file
        raise NotFound("file-not-found", f"model {self.name} version {self.version} has no file {path[:200]!r}")


class Registry:
    """Registers, finds and deletes model versions."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._events = events
        self._clock = clock

    async def register(self, new: NewModel, files: Mapping[str, tuple[str, int]], actor: str) -> ModelVersion:
        """The next version of `new.name`. `files` are digest and size by path; the blobs must be stored already.

        Raises BadRequest `files-invalid`, NotFound `blob-not-found`, Unprocessable `size-mismatch`, `dataset-unknown`.
        """
        await check_files(self._blobs, files)
        entries = tuple(ModelFile(path, size, sha256) for path, (sha256, size) in sorted(files.items()))
        async with self._store.write() as connection:
            await check_references(connection, new.datasets)
            version = await _next_version(connection, new.name)
            made = ModelVersion(**msgspec.structs.asdict(new), version=version, created_at=self._clock(), files=entries)
            row = msgspec.to_builtins(made)
            del row["files"]
            await connection.execute(insert(model_versions).values(row))
            key = {"name": made.name, "version": made.version}
            await connection.execute(insert(model_files), [key | msgspec.structs.asdict(file) for file in made.files])
            await self._events.record(
                connection, "model.registered", actor, f"{made.name}:{made.version}", files=made.files
            )
        return made

    async def get(self, name: str, version: int) -> ModelVersion:
        """Raises NotFound `model-not-found`."""
        async with self._store.read() as connection:
            found = await _select(connection, _key(name, version), 1)
        if not found:
            raise _unknown(name, version)
        return found[0]

    async def list(
        self, name: str = "", tags: Mapping[str, str] | None = None, limit: int = 100, after: str = ""
    ) -> list[ModelVersion]:
        """By name, newest versions first. `after` is NAME:VERSION of the last one already seen."""
        conditions: list[ColumnElement[bool]] = []
        if name:
            conditions.append(model_versions.c.name == name)
        for tag, value in (tags or {}).items():
            conditions.append(model_versions.c.tags[tag].as_string() == value)
        if after:
            conditions.append(_behind(after))
        async with self._store.read() as connection:
            return await _select(connection, and_(True, *conditions), min(limit, MAX_LISTED + 1))

    async def delete(self, name: str, version: int, actor: str) -> None:
        """Forgets a version and the unsigned modules built from it; signed modules stay in the image repository.

        Blobs stay: other versions may share them. Raises NotFound `model-not-found`, Conflict `model-in-use` while a
        device is assigned a module built from it or a rollout of one has not ended.
        """
        async with self._store.write() as connection:
            gone = await connection.execute(delete(model_versions).where(_key(name, version)))
            if not gone.rowcount:
                raise _unknown(name, version)
            await _refuse_in_use(connection, name, version)
            unsigned = modules.c.signed_at.is_(None)
            await connection.execute(
                delete(modules).where(modules.c.name == name, modules.c.version == version, unsigned)
            )
            # No device is to have it, so patches to it have no use; their blobs go with the next sweep.
            await connection.execute(delete(patches).where(patches.c.module == name, patches.c.version == version))
            await self._events.record(connection, "model.deleted", actor, f"{name}:{version}")


async def check_files(blobs: Blobs, files: Mapping[str, tuple[str, int]]) -> None:
    """Digest and size by path. Raises BadRequest `files-invalid`, NotFound `blob-not-found`, Unprocessable
    `size-mismatch`.
    """
    if not 1 <= len(files) <= MAX_FILES:
        raise BadRequest("files-invalid", f"files: expected 1 to {MAX_FILES} files, got {len(files)}")
    if len({path.lower() for path in files}) != len(files):
        raise BadRequest("files-invalid", "files: expected paths that differ in more than upper and lower case")
    for path, (sha256, size) in files.items():
        try:
            check_path(path)
        except ChunkError as error:
            raise BadRequest("files-invalid", f"files: {error}", path=path[:200]) from error
        stored = await blobs.size(sha256)
        if stored != size:
            raise Unprocessable("size-mismatch", f"{path}: expected {size} bytes, the upload has {stored}")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValueError on more tags, other names or longer values than are kept."""
    if len(tags) > MAX_TAGS:
        raise ValueError(f"tags: expected at most {MAX_TAGS}, got {len(tags)}")
    for tag, value in tags.items():
        if not re.fullmatch(TAG_PATTERN, tag):
            raise ValueError(f"tags: expected names like {TAG_PATTERN}, got {tag[:80]!r}")
        _check_length(f"tags.{tag}", value, MAX_TEXT)


def _check_length(field: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise ValueError(f"{field}: expected at most {limit} characters, got {len(text)}")


def _key(name: str, version: int) -> ColumnElement[bool]:
    return and_(model_versions.c.name == name, model_versions.c.version == version)


def _unknown(name: str, version: int) -> NotFound:
    return NotFound("model-not-found", f"no model {name[:80]} version {version}", name=name[:80], version=version)


def _behind(after: str) -> ColumnElement[bool]:
    name, _, version = after.rpartition(":")
    if not name or not re.fullmatch("[0-9]{1,9}", version):
        raise BadRequest("query-invalid", f"after: expected NAME:VERSION, got {after[:80]!r}", field="after")
    columns = model_versions.c
    return or_(columns.name > name, and_(columns.name == name, columns.version < int(version)))


async def _next_version(connection: AsyncConnection, name: str) -> int:
    query = select(model_counters.c.version).where(model_counters.c.name == name)
    last: int | None = (await connection.execute(query)).scalar_one_or_none()
    if last is None:
        await connection.execute(insert(model_counters).values(name=name, version=1))
        return 1
    await connection.execute(update(model_counters).where(model_counters.c.name == name).values(version=last + 1))
    return last + 1


async def _select(connection: AsyncConnection, condition: ColumnElement[bool], limit: int) -> list[ModelVersion]:
    columns = model_versions.c
    query = select(model_versions).where(condition).order_by(columns.name, columns.version.desc()).limit(limit)
    rows = (await connection.execute(query)).all()
    keys = [(row.name, row.version) for row in rows]
    of_keys = tuple_(model_files.c.name, model_files.c.version).in_(keys)
    files: dict[tuple[str, int], list[ModelFile]] = {key: [] for key in keys}
    for file in await connection.execute(select(model_files).where(of_keys).order_by(model_files.c.path)):
        files[file.name, file.version].append(ModelFile(file.path, file.size, file.sha256))
    return [_version(row, files[row.name, row.version]) for row in rows]


def _version(row: Row[Any], files: Sequence[ModelFile]) -> ModelVersion:
    # SQLAlchemy's column names are a kind of str that msgspec does not take.
    columns = {str(name): value for name, value in row._mapping.items()}
    return msgspec.convert({**columns, "files": files}, ModelVersion)


async def _refuse_in_use(connection: AsyncConnection, name: str, version: int) -> None:
    devices = select(assignments.c.device).where(assignments.c.module == name, assignments.c.version == version)
    if device := (await connection.execute(devices.limit(1))).scalar_one_or_none():
        raise Conflict(
            "model-in-use",
            f"model {name} version {version} is assigned to device {device} (and maybe others); nothing was deleted",
            device=device,
        )
    of_version = and_(rollouts.c.module == name, rollouts.c.version == version)
    live = select(rollouts.c.id).where(of_version, rollouts.c.finished_at.is_(None))
    if rollout := (await connection.execute(live.limit(1))).scalar_one_or_none():
        raise Conflict(
            "model-in-use",
            f"model {name} version {version} is in rollout {rollout}, which has not ended; nothing was deleted",
            rollout=rollout,
        )
