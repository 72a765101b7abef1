"""The agent's page for Prometheus, written by hand: its parent process loads no library for it. Pure.

Names and units by Prometheus' conventions. Labels are names of this device's own modules and streams, and words of
workers, of which no more are taken than there may be. Called by `agent.metrics.server`.
Source: prometheus.io, text exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args

import msgspec

from agent.installed import key_of
from agent.link import LinkStatus
from agent.sandbox.protocol import Stats
from modules.messages import DeviceReport, ModuleReport, UpdateState
from modules.sources import MAX_SOURCES

Kind = Literal["counter", "gauge"]
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_MODULES: Final = 256
MAX_WORDS: Final = 32  # of a worker's own making, per module
MAX_LABEL_CHARS: Final = 100
_HEAT: Final = {"": 0, "warm": 1, "hot": 2}
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Process(msgspec.Struct, frozen=True):
    """The parent process: processor time in seconds, memory in bytes, open files, and when it began (epoch seconds)."""

    cpu_s: float = 0.0
    resident_bytes: int = 0
    open_files: int = 0
    started_at: float = 0.0


class Facts(msgspec.Struct, frozen=True):
    """Everything that the page tells. `stats` are by module; `waiting` and `waiting_bytes` by stream."""

    report: DeviceReport
    link: LinkStatus
    sessions: int
    waiting: Mapping[str, int]
    waiting_bytes: Mapping[str, int]
    traffic: Mapping[str, int]
    stats: Mapping[str, Stats]
    process: Process


class Sample(msgspec.Struct, frozen=True):
    value: float
    labels: dict[str, str] = {}


class Family(msgspec.Struct, frozen=True):
    """One metric; names are given without their prefix."""

    name: str
    kind: Kind
    words: str
    samples: tuple[Sample, ...]
    prefix: str = "mooring_agent_"


def page(facts: Facts) -> str:
    families = (*_device(facts), *_outbox(facts), *_update(facts.report), *_modules(facts), *_process(facts.process))
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _device(facts: Facts) -> Iterator[Family]:
    report, link = facts.report, facts.link
    who = {"device": report.device, "version": report.agent_version, "profile": report.profile.name}
    yield _one("info", "gauge", "The agent that runs.", 1, **who)
    yield _one("connected", "gauge", "Whether the hub's broker is connected.", link.connected)
    yield _one("sessions_total", "counter", "Connections to the broker.", facts.sessions)
    yield _one("connection_failures", "gauge", "Failed attempts since the last connection.", link.attempts)
    heat = _HEAT.get(report.heat, 0)
    yield _one("heat", "gauge", "How warm the device is: 0 cool, 1 warm, 2 hot.", heat)
    yield _by("fetched_bytes_total", "counter", "Bytes of files, by where they came from.", "origin", facts.traffic)


def _outbox(facts: Facts) -> Iterator[Family]:
    yield _by("outbox_entries", "gauge", "Entries that wait for the hub.", "stream", facts.waiting)
    yield _by("outbox_bytes", "gauge", "Bytes on the disk that wait for the hub.", "stream", facts.waiting_bytes)
    dropped = (
        Sample(count, dict(zip(("stream", "reason"), name.split(".", 1), strict=False)))
        for name, count in facts.report.dropped_why.items()
    )
    words = "Entries that were given up, over the life of this device."
    yield Family("outbox_dropped_total", "counter", words, tuple(dropped))


def _update(report: DeviceReport) -> Iterator[Family]:
    states = {state: float(state == report.current.state) for state in get_args(UpdateState)}
    yield _by("update_state", "gauge", "Where the update machine stands: 1 for its state.", "state", states)
    yield _one("update_done_bytes", "gauge", "Of the update under way.", report.current.done_bytes)
    yield _one("update_total_bytes", "gauge", "Of the update under way.", report.current.total_bytes)
    yield _one("update_attempt", "gauge", "Of the update under way.", report.current.attempt)
    failed = bool(report.last.reason_key)
    yield _one("last_update_failed", "gauge", "Whether the update that ended last did not succeed.", failed)
    yield _one("director_version", "gauge", "The version of the desired state that is held.", report.director_version)
    refused = {attack.key: attack.count for attack in report.attacks[:MAX_WORDS]}
    yield _by("refused_total", "counter", "What verification refused, by reason.", "key", refused)


def _modules(facts: Facts) -> Iterator[Family]:
    held = facts.report.modules[:MAX_MODULES]
    named = [(module, _labels(module)) for module in held]

    def each(name: str, kind: Kind, words: str, values: list[float]) -> Family:
        samples = (Sample(value, labels) for (_, labels), value in zip(named, values, strict=True))
        return Family(name, kind, words, tuple(samples))

    stats = [facts.stats.get(key_of(module.name, module.candidate), Stats()) for module in held]
    serving = [float(module.state == "serving") for module in held]
    yield each("module_serving", "gauge", "Whether the module serves.", serving)
    yield each("module_verified", "gauge", "Whether it came through probation.", [m.verified for m in held])
    yield each("module_restarts_total", "counter", "Restarts of its worker.", [m.restarts for m in held])
    yield each("module_requests_total", "counter", "Requests since the worker started.", [s.requests for s in stats])
    yield each("module_rows_total", "counter", "Rows predicted since the worker started.", [s.rows for s in stats])
    yield each("module_errors_total", "counter", "Requests that failed (5xx).", [s.errors for s in stats])
    yield each("module_refused_total", "counter", "Requests that were refused (4xx).", [s.refused for s in stats])
    yield each("module_samples_total", "counter", "Predictions sampled.", [s.sampled for s in stats])
    quantiles = ((stat, labels) for stat, (_, labels) in zip(stats, named, strict=True))
    latency = tuple(
        Sample(us / 1e6, {**labels, "quantile": quantile})
        for stat, labels in quantiles
        for quantile, us in (("0.5", stat.p50_us), ("0.99", stat.p99_us))
    )
    yield Family("module_latency_seconds", "gauge", "Of all predictions since the worker started.", latency)
    dropped = tuple(
        Sample(count, {**labels, "reason": reason})
        for module, labels in named
        for reason, count in sorted(module.samples_dropped.items())[:MAX_WORDS]
    )
    yield Family("module_samples_dropped_total", "counter", "Samples that could not be given, by reason.", dropped)
    beside = tuple(
        Sample(count, {**labels, "outcome": outcome})
        for module, labels in named
        for outcome, count in sorted(module.beside.items())[:MAX_WORDS]
    )
    yield Family("module_beside_total", "counter", "Predictions given to a candidate, by what came of them.", beside)
    yield from _sources([(stat, labels) for stat, (_, labels) in zip(stats, named, strict=True)])


def _labels(module: ModuleReport) -> dict[str, str]:
    """A candidate has the name of the version that serves."""
    labels = {"module": module.name, "version": str(module.version)}
    return labels | ({"mode": module.mode} if module.candidate else {})


def _sources(held: list[tuple[Stats, dict[str, str]]]) -> Iterator[Family]:
    """Sources have no names; they are told apart by their place in the manifest."""
    seen = [
        (source, {**labels, "source": source.kind, "number": str(number)})
        for stat, labels in held
        for number, source in enumerate(stat.sources[:MAX_SOURCES])
    ]
    items = tuple(
        Sample(count, {**labels, "outcome": outcome})
        for source, labels in seen
        for outcome, count in (("taken", source.taken), ("failed", source.failed), ("dropped", source.dropped))
    )
    yield Family("source_items_total", "counter", "Items of a module's own sources, by outcome.", items)
    opened = tuple(Sample(float(source.state == "open"), labels) for source, labels in seen)
    yield Family("source_open", "gauge", "Whether a source is there.", opened)


def _process(process: Process) -> Iterator[Family]:
    """Under the names that Prometheus' own libraries use."""
    for family in (
        _one("cpu_seconds_total", "counter", "Processor time of the agent's parent process.", process.cpu_s),
        _one("resident_memory_bytes", "gauge", "Memory of the agent's parent process.", process.resident_bytes),
        _one("open_fds", "gauge", "Open files of the agent's parent process.", process.open_files),
        _one("start_time_seconds", "gauge", "When it began, since the epoch.", process.started_at),
    ):
        yield msgspec.structs.replace(family, prefix="process_")


def _one(name: str, kind: Kind, words: str, value: float, **labels: str) -> Family:
    return Family(name, kind, words, (Sample(value, labels),))


def _by(name: str, kind: Kind, words: str, label: str, values: Mapping[str, float]) -> Family:
    return Family(name, kind, words, tuple(Sample(value, {label: key}) for key, value in values.items()))


def _lines(family: Family) -> Iterator[str]:
    name = f"{family.prefix}{family.name}"
    yield f"# HELP {name} {family.words}"
    yield f"# TYPE {name} {family.kind}"
    for sample in family.samples:
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels.items())
        # repr: all digits, which a counter of bytes needs.
        yield f"{name}{{{labels}}} {float(sample.value)!r}" if labels else f"{name} {float(sample.value)!r}"


def _escaped(value: str) -> str:
    return value[:MAX_LABEL_CHARS].translate(_ESCAPES)
