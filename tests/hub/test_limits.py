"""How often somebody may ask: buckets with a bound, and what the API answers beyond them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.errors import TooMany
from cloud_hub.limits import Limiter, Rate, network_of
from cloud_hub.roles import Role
from support.clock import SetClock
from support.fleets import PLENTY, open_world


def test_a_burst_is_taken_and_then_the_rate() -> None:
    clock = SetClock()
    limiter = Limiter("requests", Rate(2.0, 3), clock)
    assert [limiter.try_take("a") for _ in range(4)] == [True, True, True, False]
    with pytest.raises(TooMany, match="requests: expected at most 2 per second; try again in 1 s") as caught:
        limiter.take("a")
    assert caught.value.retry_after_s == 1
    clock.advance(0.5)
    assert [limiter.try_take("a"), limiter.try_take("a")] == [True, False]
    assert limiter.try_take("b")


def test_whoever_waits_as_long_as_told_gets_in() -> None:
    clock = SetClock()
    limiter = Limiter("requests", Rate(1 / 30, 1), clock)
    limiter.take("a")
    with pytest.raises(TooMany, match="try again") as caught:
        limiter.take("a")
    clock.advance(caught.value.retry_after_s)
    limiter.take("a")


def test_a_clock_set_back_takes_nothing_away() -> None:
    clock = SetClock()
    limiter = Limiter("requests", Rate(1.0, 5), clock)
    limiter.take("a")
    clock.advance(-3600)
    assert all(limiter.try_take("a") for _ in range(4))


def test_many_senders_cost_a_bounded_amount_of_memory() -> None:
    limiter = Limiter("requests", Rate(1.0, 1), SetClock(), max_keys=100)
    for number in range(10_000):
        limiter.take(f"sender-{number}")
    assert len(limiter) == 100
    assert not limiter.try_take("sender-9999")


@given(st.lists(st.floats(0, 5), max_size=50))
def test_no_pattern_of_requests_gets_more_than_burst_and_rate(pauses: list[float]) -> None:
    clock = SetClock()
    limiter = Limiter("requests", Rate(0.5, 4), clock)
    start, taken = clock(), 0
    for pause in pauses:
        clock.advance(pause)
        taken += limiter.try_take("a")
    assert taken <= 4 + 0.5 * (clock() - start) + 1e-6


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        (None, "unknown"),
        ("not an address", "unknown"),
    ],
)
def test_a_sender_is_an_address_or_the_net_of_one_subscriber(address: str | None, network: str) -> None:
    assert network_of(address) == network


async def test_each_token_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    async with open_world(tmp_path, principal=Rate(0.1, 3)) as world:
        other = await world.token(Role.VIEWER)
        for _ in range(3):
            assert (await world.ask(world.admin, "GET", "/whoami")).status == 200
        refused = await world.ask(world.admin, "GET", "/whoami")
        assert (refused.status, refused.key, refused.headers["Retry-After"]) == (429, "rate-limited", "10")
        assert (await world.ask(other, "GET", "/whoami")).status == 200
        world.clock.advance(10)
        assert (await world.ask(world.admin, "GET", "/whoami")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health", None),
        ("POST", "/enroll", {"token": "mct1.a.b", "device": "a", "csr": "", "profile": "edge"}),
        ("GET", "/devices", None),
    ],
)
async def test_strangers_are_slowed_down_by_address(
    tmp_path: Path, method: str, path: str, body: dict[str, str] | None
) -> None:
    async with open_world(tmp_path, stranger=Rate(0.1, 3)) as world:
        statuses = [(await world.ask("", method, path, body)).status for _ in range(5)]
        assert 429 not in statuses[:3]
        assert statuses[3:] == [429, 429]
        assert (await world.ask(world.admin, "GET", "/whoami")).status == 200


async def test_guessing_tokens_is_slowed_down_too(tmp_path: Path) -> None:
    async with open_world(tmp_path, stranger=Rate(0.1, 3)) as world:
        statuses = [(await world.ask(f"mho_guess-{number}", "GET", "/devices")).status for number in range(5)]
        assert statuses == [401, 401, 401, 429, 429]


async def test_logins_are_slowed_down_by_address(tmp_path: Path) -> None:
    async with open_world(tmp_path, stranger=PLENTY) as world:
        keys = set()
        for number in range(25):
            answer = await world.ask("", "POST", "/login", {"name": f"nobody-{number}", "password": "x"})
            keys.add((answer.status, answer.key))
        assert keys == {(401, "login-failed"), (429, "rate-limited")}
