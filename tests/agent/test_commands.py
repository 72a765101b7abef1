"""Commands of the hub: each is done once, whatever is repeated or cut off, and its result arrives."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from agent.commands import MARKS_KEY, MAX_MARKS, Answer, Commands, Doer, Mark
from agent.config import OutboxLimits
from agent.errors import WorkerError
from agent.outbox import Outbox
from agent.sampling.spending import Spending
from agent.store import AgentStore
from modules.commands import MAX_INLINE_BYTES, SAMPLES, AskSamples, Command, CommandResult, decode_asked, encode_asked
from modules.errors import MessageError
from modules.manifest import SamplingPolicy
from modules.messages import decode_event, encode
from modules.packed import unpack
from modules.pieces import PIECE_BYTES, decode_piece
from modules.topics import down
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.outboxes import sending
from support.waiting import until

DEVICE = "cam-17"
LIMITS = OutboxLimits(commit_every_s=0.01, lazy_commit_s=0.01, forget_s=0.01, ack_timeout_s=1.0)
NOW = 1000.0


class Bench:
    """One life of an agent's commands beside its outbox, and a hub that hears the results."""

    def __init__(self, store: AgentStore, outbox: Outbox, hub: FakeHub) -> None:
        self.store, self.outbox, self.hub = store, outbox, hub
        self.done: list[Command] = []

    async def count(self, command: Command) -> CommandResult:
        self.done.append(command)
        self.outbox.offer("sample", b"a sample")
        return CommandResult(command.id, "done", count=1, found=1)

    @asynccontextmanager
    async def living(self, do: Doer | None = None, left_out: tuple[str, ...] = ()) -> AsyncIterator[Commands]:
        commands = Commands(self.store, self.outbox, {SAMPLES: do or self.count}, lambda: NOW, left_out)
        task = asyncio.create_task(commands.run())
        try:
            yield commands
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def results(self) -> list[CommandResult]:
        events = [decode_event(item) for item in self.hub.items("event")]
        return [event.command for event in events if event.command is not None]

    async def heard(self, count: int) -> list[CommandResult]:
        await until(lambda: len(self.results) >= count, f"{count} results")
        return self.results


@pytest.fixture
async def bench(agent_store: AgentStore, broker: Mosquitto) -> AsyncIterator[Bench]:
    link = make_link(broker)
    outbox = Outbox(agent_store, link, DEVICE, LIMITS)
    await outbox.open()
    async with FakeHub(broker) as hub, sending(outbox), running(link):
        yield Bench(agent_store, outbox, hub)


def command(id_: str = "c-1", kind: str = SAMPLES, expires_at: float = NOW + 60, version: int = 1) -> Command:
    return Command(id_, kind, expires_at, encode_asked(AskSamples("digits")), version)


async def test_a_command_is_done_once_however_often_it_comes(bench: Bench) -> None:
    async with bench.living() as commands:
        for _ in range(5):
            commands.hear(command())
        commands.hear(command("c-2"))
        results = await bench.heard(2)
    assert [done.id for done in bench.done] == ["c-1", "c-2"]
    assert results == [CommandResult("c-1", "done", count=1, found=1), CommandResult("c-2", "done", count=1, found=1)]
    async with bench.living() as commands:  # after a restart
        commands.hear(command())
        commands.hear(command("c-3"))
        await bench.heard(3)
    assert [done.id for done in bench.done] == ["c-1", "c-2", "c-3"]
    await until(lambda: len(bench.hub.items("sample")) == 3, "the samples")


async def test_a_command_that_was_cut_off_is_answered_as_such_and_not_done_again(bench: Bench) -> None:
    begun = asyncio.Event()

    async def never(_: Command) -> CommandResult:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with bench.living(never) as commands:
        commands.hear(command())
        async with asyncio.timeout(20):
            await begun.wait()
    assert bench.results == []
    async with bench.living() as commands:
        commands.hear(command())
        (result,) = await bench.heard(1)
        commands.hear(command("c-2"))
        await bench.heard(2)
    assert (result.outcome, result.key) == ("failed", "interrupted")
    assert [done.id for done in bench.done] == ["c-2"]


@pytest.mark.parametrize(
    ("sent", "outcome", "key"),
    [
        (command(expires_at=NOW), "expired", "expired"),
        (command(kind="reboot"), "refused", "unknown-command"),
        (command(version=2), "refused", "unknown-command"),
    ],
)
async def test_what_is_late_or_not_known_is_refused_and_says_so(
    bench: Bench, sent: Command, outcome: str, key: str
) -> None:
    async with bench.living() as commands:
        commands.hear(sent)
        (result,) = await bench.heard(1)
    assert (result.outcome, result.key) == (outcome, key)
    assert result.text
    assert bench.done == []


@pytest.mark.parametrize(
    ("failure", "key"),
    [
        (WorkerError("gone", "worker-exited"), "worker-exited"),
        (MessageError("not a question"), "message-invalid"),
        (ZeroDivisionError("secret"), "internal"),
    ],
)
async def test_a_command_that_fails_says_why_and_the_next_is_done(bench: Bench, failure: Exception, key: str) -> None:
    async def fail(asked: Command) -> CommandResult:
        if asked.id == "c-1":
            raise failure
        return await bench.count(asked)

    async with bench.living(fail) as commands:
        commands.hear(command())
        commands.hear(command("c-2"))
        first, second = await bench.heard(2)
    assert (first.outcome, first.key) == ("failed", key)
    assert "secret" not in first.text
    assert second.outcome == "done"


async def test_a_kind_that_the_devices_settings_leave_out_is_refused_and_not_done(bench: Bench) -> None:
    async with bench.living(left_out=(SAMPLES,)) as commands:
        commands.hear(command())
        (result,) = await bench.heard(1)
    assert (result.outcome, result.key) == ("refused", "not-allowed")
    assert "commands.refuse" in result.text
    assert bench.done == []


@pytest.mark.parametrize("size", [10, MAX_INLINE_BYTES - 2000, MAX_INLINE_BYTES + 1, 3 * PIECE_BYTES])
async def test_what_a_command_brings_arrives_whole_in_the_result_or_in_pieces(bench: Bench, size: int) -> None:
    brings = random.Random(5).randbytes(size)  # which packing makes no smaller

    async def bring(asked: Command) -> Answer:
        return Answer(CommandResult(asked.id, "done", count=1, found=1), brings)

    async with bench.living(bring) as commands:
        commands.hear(command())
        (result,) = await bench.heard(1)
    packed = result.data
    if not packed:
        await until(lambda: len(bench.hub.items("blob")) == -(-result.size // PIECE_BYTES), "all pieces")
        packed = b"".join(decode_piece(item).data for item in bench.hub.items("blob"))
    assert (len(packed), hashlib.sha256(packed).hexdigest()) == (result.size, result.sha256)
    assert unpack(packed, size) == brings
    assert bool(result.data) == (size < MAX_INLINE_BYTES)


async def test_what_follows_an_answer_is_done_once_the_answer_is_on_the_disk(bench: Bench) -> None:
    known: list[dict[str, Mark] | None] = []

    async def ask(asked: Command) -> Answer:
        return Answer(CommandResult(asked.id, "done"), then=lambda: followed.set())

    followed = asyncio.Event()
    async with bench.living(ask) as commands:
        commands.hear(command())
        async with asyncio.timeout(20):
            await followed.wait()
        known.append(await bench.store.get(MARKS_KEY, dict[str, Mark]))
    assert known[0] is not None
    assert known[0]["c-1"].ended


async def test_only_so_many_commands_are_remembered(bench: Bench) -> None:
    marks = {f"old-{number}": Mark(float(number), ended=True) for number in range(MAX_MARKS)}
    await bench.store.put(MARKS_KEY, marks)
    async with bench.living() as commands:
        commands.hear(command())
        await bench.heard(1)
    kept = await bench.store.get(MARKS_KEY, dict[str, Mark])
    assert kept is not None
    assert len(kept) == MAX_MARKS
    assert "old-0" not in kept
    assert kept["c-1"].ended


async def test_a_command_arrives_over_the_link(agent_store: AgentStore, broker: Mosquitto) -> None:
    heard: list[Command] = []
    link = make_link(broker)
    link.on_command(heard.append)
    async with FakeHub(broker) as hub, running(link):
        async with asyncio.timeout(20):
            await link.connected.wait()
        await hub.say(down(DEVICE, "command"), b"not a message")
        await hub.say(down(DEVICE, "command"), encode(command()))
        await until(lambda: bool(heard), "the command")
    assert heard == [command()]
    assert decode_asked(heard[0].body) == AskSamples("digits")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Command("not an id", SAMPLES, 1.0),
        lambda: Command("", SAMPLES, 1.0),
        lambda: Command("c", SAMPLES, 1.0, bytes(20_000)),
        lambda: AskSamples("m", limit=0),
        lambda: AskSamples("m", limit=10_000),
        lambda: AskSamples("m", first=5, last=4),
        lambda: AskSamples("m", since=5.0, until=4.0),
    ],
)
def test_what_nobody_may_ask_cannot_be_said(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()


def test_any_bytes_are_a_question_or_refused() -> None:
    for body in (b"", b"\xc1", encode_asked(AskSamples("m"))[:-1], b"\x81\xa6module\x01"):
        with pytest.raises(MessageError, match="what a command asks for"):
            decode_asked(body)


async def test_what_was_spent_of_a_quota_is_kept_over_a_restart(agent_store: AgentStore) -> None:
    now = [1000.0]
    policy = SamplingPolicy(quota_bytes_per_day=80_000)
    first = Spending(agent_store, lambda: now[0])
    await first.open()
    assert first.left("m", SamplingPolicy()) is None
    assert first.left("m", policy) == 10_000
    first.passed("m", "sample", 9_000)
    first.passed("m", "blob", 500)
    first.passed("m", "window", 5_000)  # windows are not samples
    first.passed("other", "sample", 5_000)
    await first.keep()
    second = Spending(agent_store, lambda: now[0])
    await second.open()
    assert second.left("m", policy) == pytest.approx(500)
    assert second.secret == first.secret
    assert len(second.secret) == 32
    now[0] += 3600
    third = Spending(agent_store, lambda: now[0])
    await third.open()
    assert third.left("m", policy) == pytest.approx(500 + 80_000 * 7 / 8 / 24)
