"""Builds the sources of a module in its worker: one thread each. Called by the session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from agent.backends import BackendError
from agent.backends.steps.pictures import opencv
from agent.endpoint.counters import Counters
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Recorder
from agent.sandbox.given import Given
from agent.sandbox.protocol import SourceSeen
from agent.sources.asking import Alone, Device, Parent
from agent.sources.content import Reader
from agent.sources.directory import DirectoryIntake
from agent.sources.feed import Feed, Together, together
from agent.sources.items import Intake, Writer
from agent.sources.script import ScriptIntake
from agent.sources.video import VideoIntake
from modules.manifest import Manifest
from modules.sources import Directory, Mqtt, Script, Source, Video, kind, target


class Sources:
    """All of a module's. `start` once it serves; `drain` before what was predicted is looked at for the last time."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = tuple(feeds)

    def start(self) -> None:
        for feed in self.feeds:
            feed.start()

    def seen(self) -> tuple[SourceSeen, ...]:
        """How they do."""
        return tuple(
            SourceSeen(feed.kind, feed.state, feed.taken, feed.failed, feed.intake.dropped) for feed in self.feeds
        )

    def hold(self, held: bool) -> None:
        """Whether they wait, for cooler times."""
        for feed in self.feeds:
            feed.hold(held)

    async def drain(self, deadline_s: float) -> int:
        """Ends what they do; nothing is cut that somebody waits for."""
        await asyncio.gather(*(feed.stop(deadline_s) for feed in self.feeds))
        return 0


def load_libraries(sources: Sequence[Source]) -> None:
    """Those that sources need, while they still may be imported. Raises BackendError, ImportError."""
    if any(isinstance(source, Video) or getattr(source, "content", "") == "image" for source in sources):
        opencv()
    elif any(getattr(source, "content", "") == "auto" for source in sources):
        with contextlib.suppress(BackendError):  # a picture is refused then, and nothing else
            opencv()
    if any(isinstance(source, Mqtt) for source in sources):
        import agent.sources.mqtt  # noqa: F401


def open_sources(
    given: Given,
    manifest: Manifest,
    slot: Path,
    predictor: Predictor,
    recorder: Recorder,
    counters: Counters,
    never_missing: frozenset[str] = frozenset(),
) -> Sources:
    """None are opened yet: their threads do that."""
    sources = manifest.runtime.sources
    if not sources:
        return Sources(())
    device: Device = Parent(given.dial) if given.dial >= 0 else Alone(sources)
    rules = together(manifest, never_missing)
    feeds = []
    for number, source in enumerate(sources):
        intake = _intake(number, source, manifest, slot, device, rules)
        feed = Feed(kind(source), intake, device, rules, predictor, recorder, counters)
        if isinstance(intake, ScriptIntake):
            intake.predict, intake.stop = feed.predict, feed.stopping
        feeds.append(feed)
    return Sources(feeds)


def _intake(number: int, source: Source, manifest: Manifest, slot: Path, device: Device, rules: Together) -> Intake:
    writer = Writer(manifest)
    match source:
        case Directory():
            reader = Reader(manifest, source.input, source.content)
            return DirectoryIntake(number, source, device, reader, rules.batched, writer)
        case Mqtt():
            from agent.sources.mqtt import MqttIntake

            reader = Reader(manifest, source.input, source.content)
            name = f"mooring-{manifest.name}-{number}"
            return MqttIntake(number, source, device, reader, rules.batched, writer, name)
        case Video():
            spec = target(source.input, manifest.inputs)
            assert spec is not None  # noqa: S101 - the manifest's check made sure
            return VideoIntake(number, source, device, spec, writer)
        case Script():
            return ScriptIntake(manifest.inputs, rules.batched, slot / source.entry if source.entry else None)
