"""Where predictions run, what is counted of them, and which files a model may name."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.backends import Array
from agent.backends.onnx_files import external_files
from agent.backends.place import Place
from agent.endpoint.counters import Counters, Latency
from agent.endpoint.exchange import Refused
from agent.endpoint.oip import Parser
from agent.endpoint.predictor import QUICK_US, Predictor
from agent.endpoint.recorder import Prediction
from agent.sandbox.protocol import SampleTaken, WindowClosed
from agent.sandbox.watch import Watch
from modules.execution import Execution
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.runtime import Stage
from modules.tensors import TensorSpec
from modules.windows import LATENCY_BINS, Window, decode_window
from support.waiting import until
from worker.driver import binary_input

HALF = Manifest(
    "m", 1, "pi", Lineage("m", 1), (TensorSpec("x", "FP16", (-1, 2)),), (), (), Runtime(model="")
)  # fmt: skip


class Waiting:
    """A backend whose run takes as long as the test wants; it remembers which thread ran it."""

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[str] = []

    def load(self, stage: Stage, place: Place) -> None: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.threads.append(threading.current_thread().name)
        self.gate.wait(20)
        return dict(inputs)

    def interrupt(self, thread: int) -> bool:
        return False

    def execution(self) -> tuple[Execution, ...]:
        return (Execution("waiting"),)

    def close(self) -> None: ...


async def test_a_quick_model_runs_in_the_loop_and_an_unknown_size_does_not() -> None:
    predictor = Predictor(Waiting(), Counters(), 4)
    assert not predictor.is_quick(1)
    predictor.warm_up({}, 1)
    assert 0 < predictor.typical_us(1) < QUICK_US
    assert predictor.is_quick(1)
    assert not predictor.is_quick(1 << 20)  # estimated from one row until it is seen
    predictor.close()


async def test_a_busy_backend_of_one_thread_is_never_run_beside_itself() -> None:
    backend, counters = Waiting(), Counters()
    predictor = Predictor(backend, counters, 4)
    predictor.warm_up({}, 1)
    backend.gate.clear()
    running = asyncio.create_task(predictor.run_in_pool({}, 1))
    await until(lambda: counters.in_flight == 1, "the run")
    assert not predictor.is_quick(1)
    backend.gate.set()
    await running
    assert backend.threads[-1].startswith("predict")
    predictor.close()


async def test_more_than_the_queue_holds_is_refused_with_503() -> None:
    backend, counters = Waiting(parallel=2), Counters()
    predictor = Predictor(backend, counters, max_queue=1)
    backend.gate.clear()
    running = [asyncio.create_task(predictor.run_in_pool({}, 1)) for _ in range(3)]
    await until(lambda: counters.in_flight == 3, "three runs")
    with pytest.raises(Refused, match="at most 3 requests at once") as refused:
        await predictor.run_in_pool({}, 1)
    assert refused.value.status == 503
    backend.gate.set()
    await asyncio.gather(*running)
    predictor.close()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200))
@settings(deadline=None)
def test_latencies_fall_into_the_octave_that_holds_them(values: list[int]) -> None:
    latency = Latency()
    for value in values:
        latency.add(value)
    expected = [0] * LATENCY_BINS
    for value in values:
        expected[min(LATENCY_BINS - 1, int(math.log2(max(1, value))) if value < 2**31 else LATENCY_BINS - 1)] += 1
    assert list(latency.octaves()) == expected
    assert latency.percentile(0.5) <= latency.percentile(0.99)


def test_a_percentile_is_right_to_an_eighth() -> None:
    latency = Latency()
    for value in range(1000, 2000):
        latency.add(value)
    assert latency.percentile(0.5) == pytest.approx(1500, rel=0.125)
    assert latency.percentile(0.99) == pytest.approx(1990, rel=0.125)
    assert Latency().percentile(0.99) == 0.0


def test_half_precision_is_looked_through_for_nan_without_overflow() -> None:
    parser = Parser(HALF, frozenset({"x"}))
    for row, fine in (([6e4, 6e4], True), ([math.inf, -math.inf], True), ([1.0, math.nan], False)):
        x = np.array([row], np.float16)
        head = json.dumps({"inputs": [binary_input(x, datatype="FP16")]}).encode()
        if fine:
            parser.parse(head + x.tobytes(), len(head))
        else:
            with pytest.raises(Refused, match="got NaN in 1 of 2 elements, the first at 1"):
                parser.parse(head + x.tobytes(), len(head))


async def test_windows_end_at_the_clock_also_when_it_is_set() -> None:
    sent: list[Window] = []
    now = [1000.5]
    counters = Counters()

    def send(notice: WindowClosed | SampleTaken) -> bool:
        assert isinstance(notice, WindowClosed)
        sent.append(decode_window(notice.window))
        return True

    watch = Watch(HALF, "d", None, "", SamplingPolicy(window_s=0.1), counters, lambda: now[0], send)
    watch.start()
    counters.rows = 3
    now[0] = 900.0  # set back
    await until(lambda: len(sent) == 1, "the window")
    counters.rows = 5
    now[0] = 5000.0  # and far ahead
    await until(lambda: len(sent) == 2, "the next window")
    await watch.stop()
    first, second = sent
    assert (first.start, first.end, first.rows) == (1000.5, 1000.5, 3)
    assert (second.start, second.end, second.rows) == (900.0, 5000.0, 2)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_name_files_or_are_no_model(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    try:
        external_files(path)
    except ValueError as error:
        text = str(error)
    else:
        text = "expected an ONNX model"
    assert "expected an ONNX model" in text


def test_files_named_in_a_subgraph_or_an_attribute_are_found(tmp_path: Path) -> None:
    def external(location: str) -> TensorProto:
        tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
        return tensor

    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["c"], value=external("in-attribute"))
    branch = helper.make_graph([constant], "branch", [], [output], [external("in-branch")])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([condition], "g", [], [output], [external("in-graph")])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert {named.location for named in external_files(path)} == {"in-attribute", "in-branch", "in-graph"}


async def test_a_watch_that_stops_while_rows_wait_leaves_nothing_behind() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    counters = Counters()
    watch = Watch(HALF, "d", None, "", SamplingPolicy(rate=0.0), counters, lambda: 1.0, lambda _: True)
    x = np.zeros((1000, 2), np.float32)
    watch.observe(Prediction("p", len(x), {"x": x}, {"y": x}))
    await watch.stop()
    await asyncio.sleep(0)
    assert complaints == []
