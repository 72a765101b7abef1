"""The accountant: what is charged, what is withheld, and that nothing is forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.privacy import KEY, MAX_WAITING, Accounts
from agent.store import AgentStore
from modules.messages import Stream
from modules.privacy import DAY_S, Privacy, Spent, epsilon_of
from modules.sampling import SamplingPolicy
from modules.windows import Window, encode_window

PRIVACY = Privacy(epsilon_per_day=1.0)
HOURLY = SamplingPolicy(rate=0.0, window_s=3600.0, privacy=PRIVACY)
SHARE = PRIVACY.rho_per_window(3600.0)
DAY = "2026-11-21"
START = 1_795_219_200.0  # the midnight with which that day begins


class Hub:
    """What has left the device."""

    def __init__(self) -> None:
        self.got: list[tuple[Stream, bytes]] = []

    def offer(self, stream: Stream, payload: bytes) -> bool:
        self.got.append((stream, payload))
        return True


def window(rho: float = SHARE, start: float = START, module: str = "digits") -> bytes:
    return encode_window(Window(module, "a" * 64, "b" * 64, start, start + 60, 10, 0, 0, b"", b"", b"", rho=rho))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AgentStore]:
    async with AgentStore(tmp_path / "agent.db") as store:
        yield store


async def accounts(store: AgentStore, hub: Hub, policy: SamplingPolicy | None = HOURLY) -> Accounts:
    found = Accounts(store, hub.offer, lambda _: policy)
    await found.open()
    return found


async def test_what_is_not_private_passes_at_once_and_costs_nothing(store: AgentStore) -> None:
    hub = Hub()
    plain = await accounts(store, hub, SamplingPolicy())
    assert plain.offer("window", window(rho=0.0))
    assert plain.offer("sample", b"whatever")
    assert [stream for stream, _ in hub.got] == ["window", "sample"]
    assert plain.spent() == ()


async def test_a_day_holds_its_windows_and_no_more(store: AgentStore) -> None:
    hub = Hub()
    mine = await accounts(store, hub)
    for hour in range(26):  # two worker restarts made two windows more
        assert mine.offer("window", window(start=START + min(hour, 23) * 3600))
        await mine.flush()
    assert len(hub.got) == 24
    (spent,) = mine.spent()
    assert (spent.day, spent.module, spent.windows, spent.withheld) == (DAY, "digits", 24, 2)
    assert epsilon_of(spent.rho, PRIVACY.delta) <= 1.0 + 1e-9
    assert mine.offer("window", window(start=START + DAY_S))
    await mine.flush()
    assert len(hub.got) == 25, "the next day has a budget of its own"


async def test_the_charge_is_on_the_disk_before_the_window_leaves(store: AgentStore) -> None:
    class NoRoom(Hub):
        def offer(self, stream: Stream, payload: bytes) -> bool:
            raise KeyboardInterrupt  # the power goes here

    mine = Accounts(store, NoRoom().offer, lambda _: HOURLY)
    await mine.open()
    mine.offer("window", window())
    with pytest.raises(KeyboardInterrupt):
        await mine.flush()
    (known,) = await store.get(KEY, tuple[Spent, ...]) or ()
    assert known.windows == 1
    again = await accounts(store, Hub())
    assert again.spent() == (known,)


async def test_windows_of_a_stop_are_charged_and_sent_once_while_the_unit_still_runs(store: AgentStore) -> None:
    hub = Hub()
    mine = await accounts(store, hub)
    task = asyncio.create_task(mine.run())
    for hour in range(8):
        assert mine.offer("window", window(start=START + hour * 3600))
    await asyncio.gather(mine.flush(), mine.flush())
    task.cancel()
    assert [payload for _, payload in hub.got] == [window(start=START + hour * 3600) for hour in range(8)]
    assert mine.spent()[0].windows == 8
    with suppress(asyncio.CancelledError):
        await task


async def test_a_window_that_says_nothing_of_its_privacy_does_not_leave(store: AgentStore) -> None:
    hub = Hub()
    mine = await accounts(store, hub)
    assert mine.offer("window", window(rho=0.0))
    await mine.flush()
    assert hub.got == []
    assert mine.spent()[0].withheld == 1


async def test_the_last_windows_of_a_module_that_is_gone_are_held_to_its_last_policy(store: AgentStore) -> None:
    hub = Hub()
    policies: dict[str, SamplingPolicy] = {"digits": HOURLY}
    mine = Accounts(store, hub.offer, policies.get)
    await mine.open()
    mine.offer("window", window())
    await mine.flush()
    policies.clear()
    mine.offer("window", window(rho=PRIVACY.rho_per_day))
    await mine.flush()
    assert len(hub.got) == 1


async def test_garbage_and_a_full_queue_are_refused(store: AgentStore) -> None:
    hub = Hub()
    mine = await accounts(store, hub)
    assert not mine.offer("window", b"\x00 no window")
    for _ in range(MAX_WAITING):
        assert mine.offer("window", window())
    assert not mine.offer("window", window())
    assert mine.offer("event", b"others pass")


@pytest.mark.parametrize("start", [float("inf"), -1e300, float("nan")])
async def test_a_window_from_no_day_at_all_is_charged_all_the_same(store: AgentStore, start: float) -> None:
    mine = await accounts(store, Hub())
    mine.offer("window", window(start=start))
    await mine.flush()
    assert mine.spent()[0].windows == 1
