from collections.abc import Mapping

import pytest
from sqlalchemy import insert, select, update

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.errors import BadRequest, Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.registry import MAX_FILES, MAX_TAGS, ModelVersion, NewModel, Registry
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, modules, rollouts
from support.clock import SetClock

ASSIGNMENT = {
    "device": "cam-1", "module": "digits", "role": "main", "version": 1, "profile": "generic-x86_64", "mode": "serve",
    "sampling": None, "config": {}, "deployment": "d1", "assigned_at": 0.0,
}  # fmt: skip
ROLLOUT = {
    "id": "r1", "module": "digits", "version": 1, "target": "all", "plan": {}, "state": "running", "reason": "",
    "group_index": 0, "created_at": 0.0,
}  # fmt: skip
MODULE = {
    "name": "digits", "version": 1, "publisher": "dev", "manifest_sha256": "0" * 64, "manifest_size": 1, "size": 1,
    "created_at": 0.0,
}  # fmt: skip


@pytest.fixture
def registry(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Registry:
    return Registry(store, blobs, events, clock)


@pytest.fixture
async def files(blobs: FolderBlobs) -> dict[str, tuple[str, int]]:
    return {path: (await blobs.put(path.encode()), len(path)) for path in ("model.onnx", "labels/en.txt")}


async def register(registry: Registry, files: Mapping[str, tuple[str, int]], name: str, **tags: str) -> ModelVersion:
    return await registry.register(NewModel(name, tags=tags), files, "alice")


async def test_a_registered_version_is_found_again_as_it_was_given(
    registry: Registry, files: dict[str, tuple[str, int]], clock: SetClock
) -> None:
    new = NewModel("digits", "Handwritten digits", "Alice", "abc123", "run-7", ("uci/digits",), {"stage": "test"})
    made = await registry.register(new, files, "alice")
    found = await registry.get("digits", 1)
    assert found == made
    assert (found.author, found.datasets, found.tags) == ("Alice", ("uci/digits",), {"stage": "test"})
    assert (found.created_at, [file.path for file in found.files]) == (clock.now, ["labels/en.txt", "model.onnx"])
    assert found.file("model.onnx").size == 10


async def test_versions_count_up_and_a_deleted_number_is_never_given_again(
    registry: Registry, files: dict[str, tuple[str, int]]
) -> None:
    assert [(await register(registry, files, "digits")).version for _ in range(2)] == [1, 2]
    assert (await register(registry, files, "others")).version == 1
    await registry.delete("digits", 2, "alice")
    assert (await register(registry, files, "digits")).version == 3


async def test_versions_are_listed_by_name_newest_first_in_pages(
    registry: Registry, files: dict[str, tuple[str, int]]
) -> None:
    for name in ("b", "a", "b"):
        await register(registry, files, name)
    seen = [(model.name, model.version) for model in await registry.list(limit=2)]
    assert seen == [("a", 1), ("b", 2)]
    assert [(model.name, model.version) for model in await registry.list(after="b:2")] == [("b", 1)]
    assert [model.version for model in await registry.list(name="b")] == [2, 1]


async def test_versions_are_found_by_all_of_the_tags(registry: Registry, files: dict[str, tuple[str, int]]) -> None:
    await register(registry, files, "digits", stage="test", line="3")
    await register(registry, files, "digits", stage="test", line="4")
    assert [model.version for model in await registry.list(tags={"stage": "test"})] == [2, 1]
    assert [model.version for model in await registry.list(tags={"stage": "test", "line": "3"})] == [1]
    assert await registry.list(tags={'"); drop table modules; --': "x"}) == []


@pytest.mark.parametrize(("name", "version"), [("digits", 7), ("unknown", 1)])
async def test_an_unknown_version_is_named(
    registry: Registry, files: dict[str, tuple[str, int]], name: str, version: int
) -> None:
    await register(registry, files, "digits")
    with pytest.raises(NotFound, match=f"no model {name} version {version}"):
        await registry.get(name, version)
    with pytest.raises(NotFound, match=f"no model {name} version {version}"):
        await registry.delete(name, version, "alice")


async def test_a_version_that_a_device_shall_run_cannot_be_deleted(
    registry: Registry, store: Store, files: dict[str, tuple[str, int]]
) -> None:
    await register(registry, files, "digits")
    async with store.write() as connection:
        await connection.execute(insert(assignments).values(ASSIGNMENT))
    with pytest.raises(Conflict, match="assigned to device cam-1"):
        await registry.delete("digits", 1, "alice")
    assert (await registry.get("digits", 1)).version == 1


async def test_a_version_in_a_rollout_can_be_deleted_once_the_rollout_has_ended(
    registry: Registry, store: Store, files: dict[str, tuple[str, int]]
) -> None:
    await register(registry, files, "digits")
    async with store.write() as connection:
        await connection.execute(insert(rollouts).values(ROLLOUT))
    with pytest.raises(Conflict, match="in rollout r1"):
        await registry.delete("digits", 1, "alice")
    async with store.write() as connection:
        await connection.execute(update(rollouts).values(finished_at=1.0))
    await registry.delete("digits", 1, "alice")


async def test_deleting_takes_unsigned_modules_along_and_leaves_signed_ones(
    registry: Registry, store: Store, events: Events, files: dict[str, tuple[str, int]]
) -> None:
    await register(registry, files, "digits")
    async with store.write() as connection:
        await connection.execute(insert(modules).values(**MODULE, profile="signed", signed_at=1.0))
        await connection.execute(insert(modules).values(**MODULE, profile="unsigned"))
    await registry.delete("digits", 1, "alice")
    async with store.read() as connection:
        assert (await connection.execute(select(modules.c.profile))).scalars().all() == ["signed"]
    assert [event.kind for event in await events.list()] == ["model.deleted", "model.registered"]


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd", "a//b", "", "a/./b", "x" * 201, ".hidden"])
async def test_paths_that_leave_their_folder_are_refused(registry: Registry, blobs: FolderBlobs, path: str) -> None:
    with pytest.raises(BadRequest, match="plain relative path"):
        await register(registry, {path: (await blobs.put(b"x"), 1)}, "digits")


async def test_no_files_too_many_files_and_paths_in_two_cases_are_refused(
    registry: Registry, blobs: FolderBlobs
) -> None:
    entry = (await blobs.put(b"x"), 1)
    for files in ({}, {f"f{number}": entry for number in range(MAX_FILES + 1)}, {"a.txt": entry, "A.txt": entry}):
        with pytest.raises(BadRequest, match="files: expected"):
            await register(registry, files, "digits")
    assert await registry.list() == []


async def test_files_that_were_never_uploaded_or_have_another_size_are_refused(
    registry: Registry, blobs: FolderBlobs
) -> None:
    with pytest.raises(NotFound, match="upload the file first"):
        await register(registry, {"model.onnx": ("0" * 64, 1)}, "digits")
    with pytest.raises(Unprocessable, match="expected 2 bytes, the upload has 1"):
        await register(registry, {"model.onnx": (await blobs.put(b"x"), 2)}, "digits")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "Digits"}, "name: expected"),
        ({"name": "digits\n"}, "name: expected"),
        ({"name": ""}, "name: expected"),
        ({"name": "digits", "author": "x" * 501}, "author: expected at most 500"),
        ({"name": "digits", "tags": {"a b": "c"}}, "tags: expected names"),
        ({"name": "digits", "tags": {"a": "x" * 501}}, r"tags\.a: expected at most"),
        ({"name": "digits", "tags": {f"t{n}": "" for n in range(MAX_TAGS + 1)}}, "tags: expected at most 64"),
    ],
)
def test_values_beyond_the_limits_never_become_a_model(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NewModel(**fields)  # type: ignore[arg-type]


async def test_everything_is_there_after_a_restart(
    registry: Registry, store: Store, files: dict[str, tuple[str, int]], hub_paths: HubPaths, clock: SetClock
) -> None:
    made = await register(registry, files, "digits", stage="test")
    await store.close()
    again = await Store.open(hub_paths.database_url)
    blobs = FolderBlobs(hub_paths.blobs)
    assert await Registry(again, blobs, Events(again, clock), clock).get("digits", 1) == made
    assert await blobs.read(made.file("model.onnx").sha256) == b"model.onnx"
    await again.close()
