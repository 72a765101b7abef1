"""Samples of a real worker: strata, redaction, the ring that outlives it, what is asked of it, and large tensors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.rings import RingFile, Rings
from agent.sandbox.given import Given
from agent.sandbox.protocol import Asked, AskedDone, SetPolicy
from modules.commands import AskSamples
from modules.manifest import Manifest, SamplingPolicy
from modules.messages import Sample
from modules.sampling import Redaction, Stratum
from worker.conftest import Digits
from worker.driver import WorkerDriver, json_input

KEEPS = SamplingPolicy(
    rate=0.0,
    window_s=3600,
    ring_rows=100,
    ring_bytes=256 * 1024,
    strata=(
        Stratum("unsure", 0.0, "low_confidence", below=2.0),
        Stratum("dark", 0.0, "between", "pixel 20", below=-1.0),
    ),
    redact={"x[0]": Redaction("drop"), "probabilities": Redaction("coarsen", step=0.5)},
)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[RingFile]:
    file = Rings(tmp_path / "rings").open("slot", KEEPS)
    assert file is not None
    yield file
    file.close()


@asynccontextmanager
async def serving(
    tmp_path: Path, manifest: Manifest, ring: RingFile, policy: SamplingPolicy = KEEPS
) -> AsyncIterator[WorkerDriver]:
    async with WorkerDriver(tmp_path / "slot", manifest, policy, given=Given(ring=ring.handle)) as worker:
        await worker.serve()
        yield worker
    Path(worker.path).unlink()


async def predict(worker: WorkerDriver, digits: Digits, rows: int, id_: str) -> None:
    await worker.infer({"id": id_, "inputs": [json_input(digits.x[:rows])]})


async def ask(worker: WorkerDriver, **asked: object) -> tuple[AskedDone, list[Sample]]:
    before = len(worker.samples)
    done = await worker.order(Asked("c-1", AskSamples("digits", **asked)), AskedDone)  # type: ignore[arg-type]
    return done, worker.samples[before:]


async def test_rows_of_the_ring_are_given_redacted_also_by_the_next_worker(
    tmp_path: Path, digits_module: Manifest, digits: Digits, ring: RingFile
) -> None:
    async with serving(tmp_path, digits_module, ring) as worker:
        for number in range(3):
            await predict(worker, digits, 2, f"p{number}")
        done, samples = await ask(worker, limit=4)
        assert done == AskedDone("done", count=4, found=4)
        worker.process.kill()
        await worker.exit_code()
    assert [sample.prediction_id for sample in samples] == ["p2#1", "p2#0", "p1#1", "p1#0"]
    for sample in samples:
        assert (sample.stratum, sample.probability, sample.request) == ("asked", 1.0, "c-1")
    async with serving(tmp_path, digits_module, ring) as worker:
        await predict(worker, digits, 1, "later")
        done, samples = await ask(worker, id="p0")
        assert [sample.place for sample in samples] == [2, 1]
        _, (newest,) = await ask(worker, limit=1)
        assert (newest.prediction_id, newest.place) == ("later", 7)
        assert (await ask(worker, first=1, last=3, stratum="unsure"))[0].count == 3
        assert (await ask(worker, stratum="dark"))[0] == AskedDone("done")
        refused, _ = await ask(worker, stratum="no-such")
        assert (refused.outcome, refused.key) == ("refused", "unknown-stratum")
    x = np.frombuffer(samples[0].inputs[0].data, "<f4")
    assert np.isnan(x[0])
    assert x[1:].tolist() == digits.x[1, 1:].tolist()
    scores = np.frombuffer(samples[0].outputs[1].data, "<f4")
    assert set(scores.tolist()) <= {0.0, 0.5, 1.0}
    assert samples[0].redacted == {"x[0]": "drop", "probabilities": "coarsen"}


async def test_a_policy_turns_the_ring_on_and_off_without_a_restart(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    ring = Rings(tmp_path / "rings").open("slot", SamplingPolicy())
    assert ring is not None
    async with serving(tmp_path, digits_module, ring, SamplingPolicy(rate=0.0, window_s=3600)) as worker:
        await predict(worker, digits, 1, "before")
        refused, _ = await ask(worker)
        assert (refused.outcome, refused.key) == ("refused", "no-ring")
        assert "ring_rows" in refused.text
        ring.grow(KEEPS)
        worker.send(SetPolicy(KEEPS))
        await predict(worker, digits, 1, "while")
        assert [sample.prediction_id for sample in (await ask(worker))[1]] == ["while"]
        worker.send(SetPolicy(SamplingPolicy(rate=0.0, window_s=3600)))
        assert (await ask(worker))[0].key == "no-ring"
        assert b"while" not in os.pread(ring.handle, 256 * 1024, 0)
    ring.close()


async def test_a_policy_that_does_not_fit_the_module_takes_no_samples_and_says_why(
    tmp_path: Path, digits_module: Manifest, digits: Digits, ring: RingFile
) -> None:
    wrong = SamplingPolicy(rate=1.0, window_s=3600, redact={"face": Redaction("drop")}, ring_rows=10)
    async with serving(tmp_path, digits_module, ring, wrong) as worker:
        await predict(worker, digits, 3, "p")
        stats = await worker.stats()
        assert (stats.rows, stats.sampled) == (3, 0)
        assert "got 'face'" in stats.sampling
        assert (await ask(worker))[0].key == "policy-unfit"
        worker.send(SetPolicy(SamplingPolicy(rate=1.0, window_s=3600)))
        await predict(worker, digits, 1, "q")
        stats = await worker.stats()
        assert (stats.sampled, stats.sampling) == (1, "")
    assert [sample.prediction_id for sample in worker.samples] == ["q"]


async def test_a_quota_thins_what_is_sent_and_goes_on_after_a_restart(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    policy = SamplingPolicy(rate=1.0, window_s=3600, quota_bytes_per_day=200_000)
    for left in (None, 1_000.0):
        given = Given(quota_left=left)
        async with WorkerDriver(tmp_path / "slot", digits_module, policy, given=given) as worker:
            await worker.serve()
            for number in range(10):
                await predict(worker, digits, 50, f"p{number}")
            stats = await worker.stats()
        Path(worker.path).unlink()
        sent = sum(len(msgspec.msgpack.encode(sample)) for sample in worker.samples)
        assert stats.sampled + stats.thinned == stats.rows == 500
        assert stats.sampled == len(worker.samples)
        if left is None:  # a bucket of 25,000 bytes
            assert 10_000 < sent < 27_000
            assert min(sample.probability for sample in worker.samples) < 0.3
        else:  # what is left of it
            assert sent < 5_000
        assert all(0.0 < sample.probability <= 1.0 for sample in worker.samples)


async def test_what_is_asked_for_counts_against_the_quota_and_ends_with_it(
    tmp_path: Path, digits_module: Manifest, digits: Digits, ring: RingFile
) -> None:
    policy = msgspec.structs.replace(KEEPS, quota_bytes_per_day=80_000)
    given = Given(ring=ring.handle, quota_left=2_000.0)
    async with WorkerDriver(tmp_path / "slot", digits_module, policy, given=given) as worker:
        await worker.serve()
        await predict(worker, digits, 50, "p")
        done, samples = await ask(worker)
        assert (done.outcome, done.key) == ("done", "quota")
        assert 1 <= done.count == len(samples) <= 8
        assert (await ask(worker))[0].count == 0
