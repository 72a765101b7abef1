"""Samples are listed page by page, filtered, readable, and exported as JSON lines."""

import base64

import msgspec
import numpy as np
import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.samples import MAX_LISTED, SampleQuery, SampleRow, Samples, readable
from cloud_hub.store.engine import Store
from modules.tensors import Tensor
from support.monitoring import Built, Monitored, build_module, make_sample

RANDOM = np.random.default_rng(23)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_module(store, blobs, RANDOM.normal(size=(50, 2)))


@pytest.fixture
async def samples(store: Store, blobs: Blobs, events: Events, clock: Clock, built: Built) -> Samples:
    """Nine samples: three devices in turn, one second apart."""
    hub = Monitored(store, blobs, events, clock)
    for i in range(9):
        await hub.send(f"edge-{i % 3}", make_sample(built, f"p-{i}", clock() + i, np.array([i, 0.5])))
    return Samples(store)


async def ids(samples: Samples, **query: object) -> list[str]:
    return [row.prediction_id for row in await samples.list(msgspec.convert(query, SampleQuery))]


async def test_samples_are_listed_readable_in_the_order_they_came(samples: Samples) -> None:
    rows = await samples.list(SampleQuery(limit=2))
    assert [row.prediction_id for row in rows] == ["p-0", "p-1"]
    (given,), (answer,) = rows[1].inputs, rows[1].outputs
    assert (given.name, given.shape, given.data) == ("x", (1, 2), [[1.0, 0.5]])
    assert answer.data == ["cat"]


async def test_pages_follow_each_other_without_gap(samples: Samples) -> None:
    seen, after = [], 0
    while page := await samples.list(SampleQuery(after=after, limit=4)):
        seen += [row.prediction_id for row in page]
        after = page[-1].id
    assert seen == [f"p-{i}" for i in range(9)]


async def test_samples_are_found_by_device_time_and_id(samples: Samples, clock: Clock) -> None:
    assert await ids(samples, device="edge-1") == ["p-1", "p-4", "p-7"]
    assert await ids(samples, since=clock() + 3, until=clock() + 5) == ["p-3", "p-4"]
    assert await ids(samples, prediction_id="p-5") == ["p-5"]
    assert await ids(samples, stratum="low-confidence") == []
    assert len(await ids(samples, module="digits", version=1)) == 9


async def test_an_unknown_module_is_named(samples: Samples) -> None:
    with pytest.raises(NotFound, match="no module digits version 2"):
        await samples.list(SampleQuery(module="digits", version=2))


async def test_the_export_is_one_json_object_per_line_over_all_pages(
    samples: Samples, store: Store, blobs: Blobs, events: Events, clock: Clock, built: Built
) -> None:
    hub = Monitored(store, blobs, events, clock)
    many = [make_sample(built, f"q-{i}", clock(), np.array([i, 0.0])) for i in range(450)]
    await hub.send("edge-9", *many)
    lines = [line async for line in samples.export(SampleQuery(device="edge-9"))]
    rows = [msgspec.json.decode(line, type=SampleRow) for line in lines]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert [row.prediction_id for row in rows] == [f"q-{i}" for i in range(450)]


def test_tensors_that_are_large_or_no_text_come_as_base64() -> None:
    large = Tensor("x", "UINT8", (MAX_LISTED + 1,), bytes(MAX_LISTED + 1))
    broken = Tensor("x", "BYTES", (1,), b"\xff\xff\xff\xff")
    binary = Tensor("x", "BYTES", (1,), b"\x02\x00\x00\x00\xff\xfe")
    for tensor in (large, broken, binary):
        shown = readable(tensor)
        assert shown.data is None
        assert shown.base64 is not None
        assert base64.b64decode(shown.base64) == tensor.data


def test_half_floats_truth_values_and_texts_are_read() -> None:
    assert readable(Tensor("x", "FP16", (2,), np.array([1.5, -2], "<f2").tobytes())).data == [1.5, -2.0]
    assert readable(Tensor("x", "BOOL", (1, 2), b"\x01\x00")).data == [[True, False]]
    assert readable(Tensor("x", "BYTES", (2, 1), b"\x01\x00\x00\x00a\x00\x00\x00\x00")).data == [["a"], [""]]
