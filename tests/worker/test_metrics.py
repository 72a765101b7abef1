"""What a worker tells Prometheus: read by Prometheus' own parser, and right after known requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from agent.endpoint.counters import Counters
from agent.endpoint.metrics import metrics
from modules.manifest import Manifest, SamplingPolicy
from worker.conftest import Digits
from worker.driver import WorkerDriver, json_input, request


def read(text: str) -> dict[str, dict[str, float]]:
    """By name, then by the label that tells samples apart. Every family must say its kind and meaning."""
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.documentation
        for sample in family.samples:
            assert {"module", "version"} <= set(sample.labels)
            apart = ",".join(sample.labels[key] for key in ("status", "outcome", "le") if key in sample.labels)
            values.setdefault(sample.name, {})[apart] = sample.value
    return values


async def test_metrics_say_what_was_asked_and_answered(tmp_path: Path, digits_module: Manifest, digits: Digits) -> None:
    policy = SamplingPolicy(rate=1.0, window_s=3600)
    async with WorkerDriver(tmp_path / "slot", digits_module, policy) as worker:
        await worker.serve()
        for count in (1, 1, 5):
            assert (await worker.infer({"inputs": [json_input(digits.x[:count])]})).status == 200
        assert (await worker.infer({"inputs": [json_input(digits.x[:1, :2])]})).status == 400
        response = await worker.ask(request("GET", "/metrics"))
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        told = read(response.body.decode())
    assert told["mooring_requests_total"] == {"200": 3, "400": 1}
    assert told["mooring_rows_total"] == {"": 7}
    assert told["mooring_samples_total"] == {"taken": 7, "dropped": 0, "thinned": 0}
    assert told["mooring_request_seconds_count"] == {"": 3}
    assert 0 < told["mooring_request_seconds_sum"][""] < 60
    assert told["mooring_run_rows_bucket"]["1"] == 2
    assert told["mooring_run_rows_bucket"]["7"] == 3
    assert told["mooring_run_rows_sum"] == {"": 7}
    assert told["mooring_requests_waiting"] == {"": 0}
    assert 0 < told["mooring_run_seconds_total"][""] <= told["mooring_request_seconds_sum"][""]
    assert told["mooring_cpu_seconds_total"][""] > 0


def test_buckets_only_grow_and_end_with_all(digits_module: Manifest) -> None:
    counters = Counters()
    for us in (1, 50, 63, 64, 65, 1000, 10**6, 10**9):
        counters.answered(200)
        counters.latency.add(us)
    told = read(metrics(digits_module, counters))["mooring_request_seconds_bucket"]
    assert list(told.values()) == sorted(told.values())
    assert told["+Inf"] == 8
    assert told["6.4e-05"] == 3  # below 64 microseconds
    assert read(metrics(digits_module, Counters()))["mooring_rows_total"] == {"": 0}
    assert np.isclose(read(metrics(digits_module, counters))["mooring_request_seconds_sum"][""], 1001.001243)
