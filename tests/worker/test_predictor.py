"""Where predictions run, what is counted of them, and which files a model may name."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.backends import Array, Backend, BackendError
from agent.backends.onnx_files import external_files
from agent.backends.place import Place
from agent.endpoint.counters import Counters, Latency
from agent.endpoint.exchange import Refused, Reply, Request
from agent.endpoint.jobs import Job, portion
from agent.endpoint.oip import Call, Parser
from agent.endpoint.pace import QUICK_US, TRIES, Pace
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction
from agent.sandbox.watch import Watch
from modules.execution import StageExecution
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.runtime import Stage
from modules.tensors import TensorSpec
from modules.windows import LATENCY_BINS
from support.waiting import until
from worker.driver import binary_input

COLUMN = (TensorSpec("x", "FP32", (-1, 1)),)
ROWS = Parser(Manifest("m", 1, "pi", Lineage("m", 1), COLUMN, COLUMN, (), Runtime(model="")), frozenset())
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
        self.busy = self.most_at_once = 0
        self.answer: Callable[[Mapping[str, Array]], dict[str, Array]] = dict

    def load(self, stage: Stage, place: Place) -> None: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.threads.append(threading.current_thread().name)
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        self.gate.wait(20)
        try:
            return self.answer(inputs)
        finally:
            self.busy -= 1

    def interrupt(self, thread: int) -> bool:
        return False

    def execution(self) -> tuple[StageExecution, ...]:
        return (StageExecution("waiting"),)

    def close(self) -> None: ...


class Counter:
    """A desk: gives jobs their rows, and keeps what comes back."""

    def __init__(self, predictor: Predictor) -> None:
        self.answers: list[list[float]] = []
        self.batches: list[int] = []
        self.problems: list[Exception] = []
        predictor.serve(self)

    def inputs(self, jobs: list[Job]) -> dict[str, Array]:
        return {"x": np.concatenate([job.call.inputs["x"] for job in jobs])}

    def answered(self, jobs: list[Job], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self.batches.append(len(jobs))
        start = 0
        for job in jobs:
            if not job.over:
                self.answers.append(outputs["x"][start : start + job.rows].ravel().tolist())
                job.tell(Reply(200, b""))
            start += job.rows

    def failed(self, job: Job, error: Exception) -> None:
        self.problems.append(error)
        job.tell(Reply(500, b""))


def a_job(*values: float, alone: bool = False, due_ns: int = 0) -> Job:
    x = np.array(values, np.float32).reshape(-1, 1)
    request = Request(b"POST", b"/", b"", None, True, time.perf_counter_ns(), due_ns, alone)
    return Job(request, Call(ROWS, "", (), {"x": x}))


def predictor_of(backend: Backend, counters: Counters, max_queue: int = 64, batch_rows: int = 8) -> Predictor:
    """Ready to run one row in the loop, and requests together."""
    predictor = Predictor(backend, counters, max_queue, batch_rows=batch_rows)
    predictor.warm_up({"x": np.zeros((1, 1), np.float32)}, 1)
    predictor.prove({"x": np.zeros((2, 1), np.float32)}, 2, 1e-3, 1e-4)
    return predictor


async def test_a_quick_model_runs_in_the_loop_and_an_unknown_size_does_not() -> None:
    backend = Waiting()
    predictor = Predictor(backend, Counters(), 4)
    assert not predictor.is_quick(1)
    predictor.warm_up({}, 1)
    assert 0 < predictor.typical_us(1) < QUICK_US
    assert predictor.is_quick(1)
    assert not predictor.is_quick(1 << 20)  # estimated from one row until it is seen
    predictor.close()


async def test_requests_of_one_turn_of_the_loop_run_together_and_get_their_own_rows() -> None:
    backend, counters = Waiting(), Counters()
    predictor = predictor_of(backend, counters)
    desk = Counter(predictor)
    for value in range(5):
        predictor.submit(a_job(value, value + 0.5))
    assert desk.answers == []
    await until(lambda: len(desk.answers) == 5, "the answers")
    assert desk.answers == [[value, value + 0.5] for value in range(5)]
    assert desk.batches == [4, 1]  # of eight rows at most
    assert (counters.runs, counters.batches[3], counters.batches[1]) == (2, 1, 1)
    predictor.close()


async def test_who_is_alone_waits_for_nobody() -> None:
    predictor = predictor_of(Waiting(), Counters())
    desk = Counter(predictor)
    job = a_job(1.0, alone=True)
    predictor.submit(job)
    assert (desk.answers, job.reply is not None) == ([[1.0]], True)
    predictor.close()


async def test_nothing_runs_together_where_rows_are_not_proven_to_be_independent() -> None:
    backend = Waiting()
    backend.answer = lambda inputs: {"x": inputs["x"] - inputs["x"].max()}
    predictor = Predictor(backend, Counters(), 4, batch_rows=8)
    predictor.warm_up({"x": np.zeros((1, 1), np.float32)}, 1)
    predictor.prove({"x": np.array([[1.0], [2.0]], np.float32)}, 2, 1e-3, 1e-4)
    desk = Counter(predictor)
    for value in (1.0, 2.0):
        predictor.submit(a_job(value))
    assert (desk.answers, desk.batches) == ([[0.0], [0.0]], [1, 1])
    predictor.close()


async def test_a_bad_request_does_not_fail_those_that_ran_with_it() -> None:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if (inputs["x"] == 13.0).any():
            raise BackendError("bad-input", "no thirteen")
        return dict(inputs)

    backend = Waiting()
    predictor = predictor_of(backend, Counters())
    desk, backend.answer = Counter(predictor), run
    for value in (1.0, 13.0, 3.0):
        predictor.submit(a_job(value))
    await until(lambda: len(desk.answers) + len(desk.problems) == 3, "all three")
    assert desk.answers == [[1.0], [3.0]]
    assert [str(problem) for problem in desk.problems] == ["no thirteen"]
    predictor.close()


async def test_a_model_that_gives_another_count_of_rows_is_run_one_by_one_from_then_on() -> None:
    backend = Waiting()
    predictor = predictor_of(backend, Counters())
    desk = Counter(predictor)
    backend.answer = lambda inputs: {"x": inputs["x"][:1]}
    for _ in range(2):
        for value in (1.0, 2.0):
            predictor.submit(a_job(value))
        await asyncio.sleep(0)
        await until(lambda: len(desk.answers) % 2 == 0, "the answers")
    assert desk.answers == [[1.0], [2.0]] * 2
    assert set(desk.batches) == {1}
    predictor.close()


async def test_what_waits_for_the_pool_runs_together_when_its_turn_comes() -> None:
    backend, counters = Waiting(), Counters()
    predictor = predictor_of(backend, counters)
    desk = Counter(predictor)
    backend.gate.clear()
    here = asyncio.create_task(asyncio.to_thread(predictor.run_here, {"x": np.zeros((1, 1), np.float32)}, 1))
    await until(lambda: backend.busy == 1, "the run in the caller's thread")
    for value in range(4):
        predictor.submit(a_job(value, alone=True))
    assert counters.in_flight == 4
    backend.gate.set()
    await here
    await until(lambda: len(desk.answers) == 4, "the answers")
    assert desk.batches[0] == 1  # was given to the pool at once
    assert sorted(desk.answers) == [[0.0], [1.0], [2.0], [3.0]]
    assert backend.most_at_once == 1
    assert counters.in_flight == 0
    predictor.close()


async def test_a_busy_backend_of_one_thread_is_never_run_beside_itself() -> None:
    """By the loop, the pool and threads of callers' own at the same time."""
    backend, counters = Waiting(), Counters()
    predictor = predictor_of(backend, counters, max_queue=10_000)
    desk = Counter(predictor)
    rows = {"x": np.zeros((1, 1), np.float32)}

    def hammer() -> None:
        for _ in range(200):
            predictor.run_here(rows, 1)

    threads = [asyncio.create_task(asyncio.to_thread(hammer)) for _ in range(3)]
    for number in range(300):
        predictor.submit(a_job(number, alone=number % 2 == 0))
        if number % 10 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*threads)
    await until(lambda: len(desk.answers) == 300, "the answers")
    assert backend.most_at_once == 1
    assert desk.problems == []
    predictor.close()


async def test_more_than_the_queue_holds_is_refused_with_503() -> None:
    backend, counters = Waiting(parallel=2), Counters()
    predictor = Predictor(backend, counters, max_queue=1)
    desk = Counter(predictor)
    backend.gate.clear()
    for value in range(4):
        predictor.submit(a_job(value))
    assert counters.in_flight == 3
    assert [(type(e), "at most 3 requests at once" in str(e)) for e in desk.problems] == [(Refused, True)]
    backend.gate.set()
    await until(lambda: len(desk.answers) == 3, "the others")
    predictor.close()


async def test_a_request_whose_client_waits_no_longer_is_not_run() -> None:
    backend, counters = Waiting(), Counters()
    predictor = predictor_of(backend, counters)
    desk = Counter(predictor)
    before = len(backend.threads)
    predictor.submit(a_job(1.0, alone=True, due_ns=time.perf_counter_ns() - 1))
    backend.gate.clear()
    here = asyncio.create_task(asyncio.to_thread(predictor.run_here, {"x": np.zeros((1, 1), np.float32)}, 1))
    await until(lambda: backend.busy == 1, "the run in the caller's thread")
    predictor.submit(a_job(2.0, alone=True, due_ns=time.perf_counter_ns() + 10_000_000))
    await until(lambda: len(desk.problems) == 2, "the refusals")
    backend.gate.set()
    await here
    assert [(e.status, "deadline was over" in str(e)) for e in desk.problems if isinstance(e, Refused)] == [
        (504, True)
    ] * 2
    assert len(backend.threads) == before + 1
    assert counters.in_flight == 0
    predictor.close()


async def test_a_request_that_was_given_up_while_it_waited_for_a_turn_is_not_run() -> None:
    """The pool's thread waits behind a caller's own; meanwhile the request has been answered."""
    backend, counters = Waiting(), Counters()
    predictor = predictor_of(backend, counters)
    desk = Counter(predictor)
    before = len(backend.threads)
    backend.gate.clear()
    here = asyncio.create_task(asyncio.to_thread(predictor.run_here, {"x": np.zeros((1, 1), np.float32)}, 1))
    await until(lambda: backend.busy == 1, "the run in the caller's thread")
    given_up = a_job(1.0, alone=True)
    predictor.submit(given_up)
    given_up.tell(Reply(503, b""))
    backend.gate.set()
    await here
    predictor.submit(a_job(2.0, alone=True))
    await until(lambda: len(desk.answers) == 1, "the next one")
    await until(lambda: len(backend.threads) == before + 2, "two runs")
    assert desk.answers == [[2.0]]
    predictor.close()


def test_only_requests_of_the_same_sizes_behind_each_other_make_a_portion() -> None:
    small = [a_job(1.0) for _ in range(3)]
    large, odd = a_job(*range(10)), a_job(1.0)
    odd.call.tails = ((7,),)
    assert portion([*small, large], 8, 9) == small
    assert portion([*small, odd], 8, 9) == small
    assert portion([large, *small], 8, 9) == [large]
    assert portion(small, 8, 2) == small[:2]
    assert portion(small, 0, 9) == small[:1]
    small[1].single = True
    assert portion(small, 8, 9) == small[:1]
    assert portion(small[1:], 8, 9) == small[1:2]


def test_running_together_is_kept_where_it_pays() -> None:
    pace = Pace()
    for _ in range(TRIES):
        pace.learn(1, 1000.0)
    assert pace.pays([1, 1, 1, 1])  # not tried yet
    for _ in range(TRIES):
        pace.learn(4, 4000.0)
    assert not pace.pays([1, 1, 1, 1])
    for _ in range(200):
        pace.learn(4, 1500.0)
    assert pace.pays([1, 1, 1, 1])


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
            _ = parser.parse(head + x.tobytes(), len(head)).inputs
        else:
            with pytest.raises(Refused, match="got NaN in 1 of 2 elements, the first at 1"):
                _ = parser.parse(head + x.tobytes(), len(head)).inputs


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


def test_rows_that_take_long_are_not_even_tried_together() -> None:
    """What a runtime has allocated for a large batch it keeps."""
    pace = Pace()
    pace.learn(1, 7000.0)
    assert not pace.pays([1, 1])
    quick = Pace()
    quick.learn(1, 400.0)
    assert quick.pays([1] * 20)
