"""Samples and windows as Parquet, read by others: DuckDB and pyarrow."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert

from cloud_hub.blobs import Blobs
from cloud_hub.datasets import parquet
from cloud_hub.datasets.counts import CountQuery
from cloud_hub.datasets.exporting import ParquetExports
from cloud_hub.errors import BadRequest, NotFound, Unprocessable
from cloud_hub.monitoring import samples as sampled
from cloud_hub.monitoring.integers import pack
from cloud_hub.monitoring.samples import SampleQuery, Samples
from cloud_hub.reference import profile_training
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import looks as look_rows
from modules.pieces import Withheld
from modules.tensors import Tensor, TensorSpec
from support.datasets import INPUTS, Made, keep, make_module, make_sample

RANDOM = np.random.default_rng(5)


@pytest.fixture
async def made(store: Store, blobs: Blobs) -> Made:
    return await make_module(store, blobs)


@pytest.fixture
def exports(store: Store, blobs: Blobs) -> ParquetExports:
    return ParquetExports(store, blobs, Samples(store), LOOK_S)


def ask(query: str) -> list[tuple[Any, ...]]:
    found = duckdb.sql(query)
    assert found is not None
    return found.fetchall()


async def written(pieces: AsyncIterator[bytes], target: Path) -> str:
    with target.open("wb") as file:
        async for piece in pieces:
            file.write(piece)
    return str(target)


async def test_samples_are_read_by_duckdb_with_scalars_as_columns_and_tensors_as_lists(
    exports: ParquetExports, store: Store, made: Made, tmp_path: Path
) -> None:
    await keep(store, "cam-1", *(make_sample(made, number, 1000.0 + number) for number in range(5)))
    await keep(store, "cam-2", make_sample(made, 7, 2000.5, stratum="asked"))
    file = await written(exports.samples(SampleQuery(module="pets")), tmp_path / "s.parquet")
    rows = ask(f"select * from '{file}' order by prediction_id")
    names = pq.read_schema(file).names
    last = dict(zip(names, rows[-1], strict=True))
    assert len(rows) == 6
    assert (last["device"], last["module"], last["version"], last["profile"]) == ("cam-2", "pets", 1, "edge")
    assert last["at"].timestamp() == 2000.5
    assert last["input.x[temperature]"] == 7
    assert np.isnan(last["input.x[humidity]"])
    assert (last["input.count"], last["input.note"], last["output.label"]) == (7, "n7", "cat")
    assert last["input.image"] == [0, 1, 2, 3]
    assert (last["input.signal"], last["input.signal.shape"]) == ([7.0, 7.0], [2])
    assert (last["output.scores[cat]"], last["output.scores[dog]"]) == (0.75, 0.25)
    weights = ask(f"select stratum, sum(weight) from '{file}' group by 1 order by 1")
    assert weights == [("asked", 0.0), ("base", 20.0)]


async def test_a_tensor_that_was_withheld_leaves_a_null_and_says_why(
    exports: ParquetExports, store: Store, made: Made, tmp_path: Path
) -> None:
    whole = make_sample(made, 1, 10.0)
    gone = Withheld("image", "input", "UINT8", (1, 2, 2), "blob", "a" * 64, 4)
    odd = Tensor("x", "FP32", (1, 2), np.zeros(2, "<f4").tobytes())
    inputs = (odd, *(tensor for tensor in whole.inputs if tensor.name not in ("image", "note", "x")))
    kept = make_sample(made, 2, 11.0, inputs=inputs, withheld=(gone,), redacted={"count": "coarsen"})
    await keep(store, "cam-1", whole, kept)
    table = pq.read_table(await written(exports.samples(SampleQuery(module="pets")), tmp_path / "s.parquet"))
    first, second = table.to_pylist()
    assert (first["withheld"], first["redacted"]) == ([], [])
    assert (second["input.image"], second["input.note"], second["input.x[light]"]) == (None, None, None)
    assert {(entry["tensor"], entry["why"], entry["sha256"]) for entry in second["withheld"]} == {
        ("input.image", "blob", "a" * 64),
        ("input.note", "absent", None),
        ("input.x", "shape", None),
    }
    assert second["redacted"] == ["count: coarsen"]


async def test_the_filters_of_the_list_hold_for_the_file(
    exports: ParquetExports, store: Store, made: Made, tmp_path: Path
) -> None:
    await keep(store, "cam-1", *(make_sample(made, number, float(number)) for number in range(10)))
    await keep(store, "cam-2", *(make_sample(made, number, float(number), stratum="first") for number in range(10)))

    async def count(devices: set[str] | None = None, **query: Any) -> int:
        pieces = exports.samples(SampleQuery(module="pets", **query), devices)
        return int(pq.read_table(await written(pieces, tmp_path / "s.parquet")).num_rows)

    assert await count(device="cam-1") == 10
    assert await count(since=3.0, until=5.0) == 4
    assert await count(stratum="first", since=8.0) == 2
    assert await count({"cam-2"}) == 10
    assert await count(set()) == 0


async def test_a_long_export_comes_in_pieces_with_a_row_group_per_page(
    exports: ParquetExports, store: Store, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "PAGE_BYTES", 5000)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 40)
    await keep(store, "cam-1", *(make_sample(made, number, float(number)) for number in range(200)))
    sizes = []

    async def watched() -> AsyncIterator[bytes]:
        async for piece in exports.samples(SampleQuery(module="pets")):
            sizes.append(len(piece))
            yield piece

    file = pq.ParquetFile(await written(watched(), tmp_path / "s.parquet"))
    assert file.metadata.num_rows == 200
    assert len(sizes) > 10
    assert 3 <= file.num_row_groups <= 5
    assert sum(size > 0 for size in sizes) > 3


async def test_what_cannot_be_one_table_is_refused_before_a_byte(
    exports: ParquetExports, store: Store, blobs: Blobs, made: Made
) -> None:
    with pytest.raises(BadRequest, match="name a module"):
        await anext(exports.samples(SampleQuery()))
    with pytest.raises(NotFound, match="no module pets version 9"):
        await anext(exports.samples(SampleQuery(module="pets", version=9)))
    await make_module(store, blobs, 2, inputs=(TensorSpec("count", "BYTES", (-1, 1)),))
    with pytest.raises(Unprocessable, match="name one version"):
        await anext(exports.samples(SampleQuery(module="pets")))


async def test_versions_whose_tensors_differ_share_columns(
    exports: ParquetExports, store: Store, blobs: Blobs, made: Made, tmp_path: Path
) -> None:
    changed = (TensorSpec("count", "FP32", (-1, 1)), TensorSpec("x", "FP32", (-1, 2)), *INPUTS[3:])
    newer = await make_module(store, blobs, 2, inputs=changed)
    values = Tensor("count", "FP32", (1, 1), np.array([0.5], "<f4").tobytes())
    two = Tensor("x", "FP32", (1, 2), np.array([1, 2], "<f4").tobytes())
    await keep(store, "cam-1", make_sample(made, 3, 1.0), make_sample(newer, 4, 2.0, inputs=(values, two)))
    table = pq.read_table(await written(exports.samples(SampleQuery(module="pets")), tmp_path / "s.parquet"))
    old, new = table.to_pylist()
    assert (old["input.count"], new["input.count"]) == (3.0, 0.5)
    assert (len(old["input.x"]), new["input.x"]) == (3, [1.0, 2.0])
    assert (old["version"], new["version"], new["input.image"]) == (1, 2, None)


LOOK_S = 3600.0


@pytest.fixture
async def counted(store: Store, blobs: Blobs) -> None:
    """Three looks of two devices and of the fleet; 100 rows per device and look. The first is of a hub before 0.2."""
    spec = TensorSpec("x", "FP64", (-1, 2))
    training = RANDOM.normal(size=(1000, 2))
    profile = profile_training({"x": training}, {}, [spec], [])
    made = await make_module(store, blobs, name="digits", inputs=(spec,), outputs=(), profile=profile)
    cells = np.concatenate([[10] * (feature.cells - 3) + [0, 0, 0] for feature in profile.features])
    latency = np.zeros(32, np.int64)
    latency[9] = 100
    rows = [
        {
            "manifest_sha256": made.manifest_sha256, "device": device, "start": look * LOOK_S, "module": "digits",
            "windows": times, "rows": 100 * times, "errors": 0, "refused": 0, "moments": b"",
            "counts": _kept(times * cells, look), "latency": _kept(times * latency, look),
        }
        for look in range(3)
        for device, times in (("edge-a", 1), ("edge-b", 1), ("*", 2))
    ]  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(look_rows), rows)


def _kept(values: np.ndarray[Any, np.dtype[Any]], look: int) -> bytes:
    return pack(values) if look else values.astype("<i8").tobytes()


async def test_windows_are_cells_beside_their_reference(exports: ParquetExports, counted: None, tmp_path: Path) -> None:
    file = await written(exports.windows(CountQuery("digits")), tmp_path / "w.parquet")
    query = "select feature, scope, sum(count), sum(reference), count(distinct start)"
    totals = ask(f"{query} from '{file}' group by 1, 2 order by 1")
    assert totals == [("x[0]", "fleet", 600, 3000, 3), ("x[1]", "fleet", 600, 3000, 3)]
    cells = ask(f"select distinct cell, low, high from '{file}' where feature = 'x[0]'")
    assert {"(missing)"} < {cell for cell, _, _ in cells}
    assert len(cells) == 13
    each = await written(exports.windows(CountQuery(each=True)), tmp_path / "e.parquet")
    devices = ask(f"select scope, sum(count) from '{each}' group by 1 order by 1")
    assert devices[:2] == [("device:edge-a", 600), ("device:edge-b", 600)]


async def test_windows_as_totals_have_a_row_per_look(exports: ParquetExports, counted: None, tmp_path: Path) -> None:
    pieces = exports.windows(CountQuery(table="looks", device="edge-a"), {"edge-a"})
    rows = pq.read_table(await written(pieces, tmp_path / "w.parquet")).to_pylist()
    assert [row["rows"] for row in rows] == [100, 100, 100]
    assert rows[0]["latency_p99_ms"] == 2**10 / 1000
    assert (rows[0]["end"] - rows[0]["start"]).total_seconds() == LOOK_S
    nobody = exports.windows(CountQuery(table="looks", device="edge-a"), {"edge-b"})
    assert pq.read_table(await written(nobody, tmp_path / "n.parquet")).num_rows == 0


def test_the_same_rows_make_the_same_bytes() -> None:
    import pyarrow as pa

    def made() -> bytes:
        schema = pa.schema([("a", pa.int64())])
        pieces = parquet.ParquetPieces(schema)
        return pieces.add(pa.RecordBatch.from_arrays([pa.array([1, 2, None])], schema=schema)) + pieces.end()

    assert made() == made()
