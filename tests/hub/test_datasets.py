"""Data sets: versioned, reproducible, split for good, kept as long as a model names them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.datasets.book import DatasetBook, file_of
from cloud_hub.datasets.building import DatasetBuilder
from cloud_hub.datasets.settings import DatasetSettings
from cloud_hub.datasets.wishes import HELDOUT, TRAIN, Dataset, NewDataset
from cloud_hub.errors import BadRequest, Conflict, NotFound, TooLarge, Unprocessable
from cloud_hub.events import Events
from cloud_hub.registry import NewModel, Registry
from cloud_hub.retention import Retention
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import samples as sample_rows
from modules.messages import Sample
from modules.pieces import Withheld
from support.clock import SetClock
from support.datasets import Made, add_label, keep, make_module, make_sample

SMALL = DatasetSettings()


@pytest.fixture
async def made(store: Store, blobs: FolderBlobs) -> Made:
    return await make_module(store, blobs)


@pytest.fixture
def tensors(hub_paths: HubPaths) -> FolderBlobs:
    """Where large tensors of samples lie."""
    return FolderBlobs(hub_paths.sample_blobs)


@pytest.fixture
def book(store: Store, blobs: FolderBlobs, tensors: FolderBlobs, events: Events, clock: SetClock) -> DatasetBook:
    return DatasetBook(store, events, DatasetBuilder(store, blobs, tensors, clock, SMALL), clock)


@pytest.fixture
async def hundred(store: Store, made: Made) -> list[Sample]:
    """A hundred samples of two devices, taken in the second 1000 + number; the even ones are labelled."""
    found = [make_sample(made, number, 1000.0 + number) for number in range(100)]
    await keep(store, "cam-1", *found[:60])
    await keep(store, "cam-2", *found[60:])
    for number in range(0, 100, 2):
        await add_label(store, f"p-{number}", "cat" if number % 4 else "dog")
    return found


def rows_of(blobs: FolderBlobs, dataset: Dataset, path: str) -> list[dict[str, Any]]:
    table = pq.read_table(blobs.path(file_of(dataset, path).sha256))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def ids(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {row["prediction_id"] for row in rows}


async def test_a_data_set_holds_rows_labels_and_weights_and_says_what_was_asked(
    book: DatasetBook, blobs: FolderBlobs, hundred: list[Sample], clock: SetClock
) -> None:
    found = await book.build(NewDataset("june", "pets"), "alice")
    assert (found.name, found.version, found.rows, found.labelled_rows) == ("june", 1, 100, 50)
    assert (found.first_at, found.last_at) == (1000.0, 1099.0)
    assert (found.query.until, found.query.upto, found.query.salt) == (clock.now, 100, "pets")
    train, heldout = rows_of(blobs, found, TRAIN), rows_of(blobs, found, HELDOUT)
    assert len(train) + len(heldout) == 100
    assert ids(train).isdisjoint(ids(heldout))
    assert found.heldout_rows == len(heldout)
    assert 5 <= len(heldout) <= 40
    one = next(row for row in (*train, *heldout) if row["prediction_id"] == "p-4")
    assert (one["label"], one["label_weight"], one["weight"], one["input.x[temperature]"]) == ("dog", 1.0, 4.0, 4.0)
    assert "id" not in one
    assert {column.name: column.type for column in found.columns}["label"] == "string"


async def test_the_same_rows_give_the_same_digest_and_a_new_label_another(
    book: DatasetBook, store: Store, hundred: list[Sample], made: Made
) -> None:
    first = await book.build(NewDataset("june", "pets"), "alice")
    again = await book.build(first.query, "bob")
    assert (again.version, again.digest) == (2, first.digest)
    await keep(store, "cam-3", make_sample(made, 500, 1050.0))
    assert (await book.build(first.query, "bob")).digest == first.digest
    await add_label(store, "p-1", "cat")
    assert (await book.build(first.query, "bob")).digest != first.digest


async def test_rows_that_came_in_another_order_give_the_same_file(book: DatasetBook, store: Store, made: Made) -> None:
    found = [make_sample(made, number, 1000.0 + number) for number in range(20)]
    await keep(store, "cam-1", *found)
    first = await book.build(NewDataset("june", "pets"), "alice")
    async with store.write() as connection:
        await connection.execute(sample_rows.delete())
    await keep(store, "cam-1", *reversed(found))
    assert (await book.build(NewDataset("june", "pets"), "alice")).digest == first.digest


async def test_a_prediction_is_held_out_in_every_data_set_of_its_module(
    book: DatasetBook, blobs: FolderBlobs, hundred: list[Sample]
) -> None:
    whole = await book.build(NewDataset("june", "pets"), "alice")
    part = await book.build(NewDataset("july", "pets", since=1040.0, labelled_only=True), "alice")
    assert ids(rows_of(blobs, part, HELDOUT)) < ids(rows_of(blobs, whole, HELDOUT))
    none = await book.build(NewDataset("all", "pets", held_out=0.0), "alice")
    assert (none.heldout_rows, rows_of(blobs, none, HELDOUT)) == (0, [])


async def test_what_is_asked_for_narrows_the_rows(
    book: DatasetBook, store: Store, hundred: list[Sample], made: Made
) -> None:
    await keep(store, "cam-1", make_sample(made, 900, 2000.0, stratum="asked"), make_sample(made, 901, 2001.0, "first"))

    async def rows(**query: Any) -> int:
        return (await book.build(NewDataset("n", "pets", **query), "alice")).rows

    assert await rows() == 101
    assert await rows(asked=True) == 102
    assert await rows(strata=("first",)) == 1
    assert await rows(devices=("cam-2",)) == 40
    assert await rows(since=1010.0, until=1020.0) == 10
    assert await rows(labelled_only=True) == 50
    assert (await book.build(NewDataset("n", "pets"), "alice", mine={"cam-2"})).rows == 40
    with pytest.raises(Unprocessable, match="no sample matches"):
        await rows(target="site=nowhere")


async def test_corrected_and_foreign_labels_do_not_count(
    book: DatasetBook, store: Store, blobs: FolderBlobs, made: Made
) -> None:
    await keep(store, "cam-1", make_sample(made, 1, 10.0), make_sample(made, 2, 11.0))
    await add_label(store, "p-1", 3, at=1.0)
    await add_label(store, "p-1", 2.5, at=2.0, device="cam-1", weight=0.5)
    await add_label(store, "p-1", 9, at=3.0, device="cam-9")
    await add_label(store, "p-2", 4, at=1.0)
    await add_label(store, "p-2", 7, at=2.0, state="unusable")
    await add_label(store, "p-2", [1.0, 2.0], at=2.0, output="boxes")
    found = await book.build(NewDataset("n", "pets", held_out=0.0), "alice")
    one, two = rows_of(blobs, found, TRAIN)
    assert (one["label"], one["label_weight"], two["label"], two["label.boxes"]) == (2.5, 0.5, 4.0, [1.0, 2.0])


async def test_a_tensor_that_came_as_a_blob_is_put_back(
    book: DatasetBook, store: Store, blobs: FolderBlobs, tensors: FolderBlobs, made: Made
) -> None:
    sha256 = await tensors.put(bytes([9, 8, 7, 6]))
    there = Withheld("image", "input", "UINT8", (1, 2, 2), "blob", sha256, 4)
    late = Withheld("image", "input", "UINT8", (1, 2, 2), "blob", "0" * 64, 4)
    for number, gone in ((1, there), (2, late)):
        whole = make_sample(made, number, float(number))
        inputs = tuple(tensor for tensor in whole.inputs if tensor.name != "image")
        await keep(store, "cam-1", make_sample(made, number, float(number), inputs=inputs, withheld=(gone,)))
    found = await book.build(NewDataset("n", "pets", held_out=0.0), "alice")
    one, two = rows_of(blobs, found, TRAIN)
    assert (one["input.image"], one["withheld"]) == ([9, 8, 7, 6], [])
    assert (two["input.image"], two["withheld"][0]["sha256"]) == (None, "0" * 64)


async def test_training_data_from_before_goes_along(
    book: DatasetBook, blobs: FolderBlobs, hundred: list[Sample]
) -> None:
    base = await blobs.put(b"anything")
    found = await book.build(NewDataset("n", "pets", base=base, base_path="base.csv"), "alice")
    assert file_of(found, "base.csv").sha256 == base
    plain = await book.build(NewDataset("n", "pets"), "alice")
    assert plain.digest != found.digest
    with pytest.raises(NotFound, match="no blob"):
        await book.build(NewDataset("n", "pets", base="1" * 64, base_path="base.csv"), "alice")
    with pytest.raises(ValueError, match="base_path"):
        NewDataset("n", "pets", base="1" * 64, base_path="../x")


async def test_a_data_set_that_is_too_large_is_refused(
    store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, hundred: list[Sample]
) -> None:
    book = DatasetBook(store, events, DatasetBuilder(store, blobs, blobs, clock, DatasetSettings(max_rows=99)), clock)
    with pytest.raises(TooLarge, match="at most 99 rows"):
        await book.build(NewDataset("june", "pets"), "alice")
    assert await book.list() == []


async def test_a_data_set_stays_while_a_model_names_it(
    book: DatasetBook, store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, hundred: list[Sample]
) -> None:
    registry = Registry(store, blobs, events, clock)
    found = await book.build(NewDataset("june", "pets"), "alice")
    files = {"model.onnx": (await blobs.put(b"model"), 5)}
    model = await registry.register(
        NewModel("cats", datasets=(found.reference, "s3://elsewhere"), mlflow_run="r1", parent="pets:1"), files, "alice"
    )
    assert ((await registry.get("cats", model.version)).mlflow_run, model.parent) == ("r1", "pets:1")
    with pytest.raises(Conflict, match="model cats:1 was trained on"):
        await book.delete("june", 1, "alice")
    await registry.delete("cats", 1, "alice")
    await book.delete("june", 1, "alice")
    assert (await book.build(NewDataset("june", "pets"), "alice")).version == 2
    with pytest.raises(NotFound, match="no data set june version 1"):
        await book.get("june", 1)


@pytest.mark.parametrize("reference", ["dataset:june:1@" + "0" * 64, "dataset:june:9@" + "0" * 64, "dataset:june"])
async def test_a_reference_to_no_data_set_of_ours_is_refused(
    book: DatasetBook,
    store: Store,
    blobs: FolderBlobs,
    events: Events,
    clock: SetClock,
    hundred: list[Sample],
    reference: str,
) -> None:
    await book.build(NewDataset("june", "pets"), "alice")
    registry = Registry(store, blobs, events, clock)
    files = {"model.onnx": (await blobs.put(b"model"), 5)}
    with pytest.raises(Unprocessable, match="nothing was registered"):
        await registry.register(NewModel("pets", datasets=(reference,)), files, "alice")
    assert await registry.list("pets") == []


async def test_a_sweep_leaves_the_files_of_data_sets(
    book: DatasetBook, store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, hundred: list[Sample]
) -> None:
    found = await book.build(NewDataset("june", "pets"), "alice")
    clock.now = 4e9
    swept = await Retention(HubConfig(), store, blobs, events, clock).sweep()
    assert swept.samples == 100
    assert len(rows_of(blobs, found, TRAIN)) > 0
    await book.delete("june", 1, "alice")
    await Retention(HubConfig(), store, blobs, events, clock).sweep()
    with pytest.raises(NotFound, match="no blob"):
        await blobs.size(file_of(found, TRAIN).sha256)


async def test_duckdb_joins_weights_and_labels(
    book: DatasetBook, blobs: FolderBlobs, hundred: list[Sample], tmp_path: Path
) -> None:
    found = await book.build(NewDataset("june", "pets", held_out=0.0), "alice")
    file = blobs.path(file_of(found, TRAIN).sha256)
    result = duckdb.sql(
        f"select label, sum(weight) from read_parquet('{file}') where label is not null group by 1 order by 1"
    )
    assert result is not None
    assert result.fetchall() == [("cat", 100.0), ("dog", 100.0)]


async def test_a_query_that_is_none_is_refused(book: DatasetBook, hundred: list[Sample]) -> None:
    for wrong in ({"since": 5.0, "until": 5.0}, {"module": "No"}, {"name": "a/b"}):
        with pytest.raises(ValueError, match="expected"):
            NewDataset(**({"name": "n", "module": "pets"} | wrong))
    with pytest.raises(BadRequest, match="query"):
        NewDataset("n", "pets", target="===")
    with pytest.raises(NotFound, match="no module dogs"):
        await book.build(NewDataset("n", "dogs"), "alice")
