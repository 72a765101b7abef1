"""Webhooks over real HTTP: in order, at least once, one endpoint never held up by another."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cloud_hub.config import HubPaths
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.outward.pace import Pace
from cloud_hub.outward.secrets import key_of, signature
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.outward.webhooks import NewSecret, NewWebhook
from cloud_hub.store.engine import Store
from support.certificates import make_ca, make_server
from support.clock import SetClock
from support.outward import Outside, outside
from support.receiver import Received, receiving
from support.waiting import until_async


async def state_of(outer: Outside, number: str, state: str) -> None:
    async def reached() -> bool:
        return (await outer.webhooks.show(number)).webhook.state == state

    await until_async(reached, f"the webhook to be {state}", 60)


async def dead_count(outer: Outside, number: str, count: int) -> None:
    async def reached() -> bool:
        return len(await outer.webhooks.dead(number)) == count

    await until_async(reached, f"{count} dead deliveries", 60)


async def test_events_arrive_in_order_signed_and_as_cloud_events(hub_paths: HubPaths, store: Store) -> None:
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        number, secret = await outer.hook(endpoint.url, kinds=("module.*", "alert.opened"))
        await outer.happen("module.built", "device.enrolled", "module.signed", "alert.opened", "alert.resolved")
        await endpoint.has(3)
        assert endpoint.kinds == ["module.built", "module.signed", "alert.opened"]
        assert all(one.is_cloud_event() and one.signed_with(secret) for one in endpoint.received)
        assert not endpoint.received[0].signed_with("whsec_" + "A" * 44)
        assert endpoint.received[0].headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        detail = await outer.webhooks.show(number)
        assert [(one.kind, one.state, one.attempts) for one in detail.deliveries][-1] == (
            "module.built",
            "delivered",
            1,
        )


async def test_the_documented_check_of_a_signature_takes_what_is_genuine_and_nothing_else(
    hub_paths: HubPaths, store: Store, repository: Path
) -> None:
    page = (repository / "docs/operate/events.md").read_text()
    (code,) = re.findall(r"<!-- tested: verify -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    async with receiving() as endpoint, outside(hub_paths, store, delivering=False) as outer:
        number, secret = await outer.hook(endpoint.url)
        assert (await outer.webhooks.ping(number, "alice", outer.sender)).delivered
        (one,) = endpoint.received
    genuine = names["genuine"]
    assert genuine(secret, one.headers, one.body)
    assert not genuine(secret, one.headers, one.body + b" ")
    assert not genuine("whsec_" + "A" * 44, one.headers, one.body)
    assert not genuine(secret, one.headers | {"webhook-id": "another"}, one.body)
    assert not genuine(secret, one.headers, one.body, tolerance_s=-1)


def test_signatures_are_those_of_the_specifications_own_example() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_what_failed_is_sent_again_under_the_same_id_and_those_behind_it_wait(
    hub_paths: HubPaths, store: Store
) -> None:
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        endpoint.answer(503)
        await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.happen("module.built", "module.signed")
        await endpoint.has(3)
        assert {one.kind for one in endpoint.received} == {"module.built"}
        assert len({one.id for one in endpoint.received}) == 1
        endpoint.answer(200)
        before = len(endpoint.received)
        await endpoint.has(before + 2)
        assert endpoint.kinds[-1] == "module.signed"


async def test_an_endpoint_that_never_answers_holds_up_no_other(hub_paths: HubPaths, store: Store) -> None:
    stuck = asyncio.Event()

    async def never(_received: Received) -> web.Response:
        await stuck.wait()
        return web.Response()

    async with receiving() as slow, receiving() as quick, outside(hub_paths, store) as outer:
        slow.reply = never
        for _ in range(5):
            await outer.hook(slow.url, kinds=("module.*",))
        await outer.hook(quick.url, kinds=("module.*",))
        await outer.happen(*["module.built"] * 20)
        await quick.has(20)
        assert len(slow.received) <= 5  # one at a time each
        stuck.set()


async def test_an_endpoint_that_is_gone_is_left_alone_and_its_events_wait_for_it(
    hub_paths: HubPaths, store: Store
) -> None:
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        endpoint.answer(410)
        number, _ = await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.happen("module.built", "module.signed")
        await state_of(outer, number, "disabled")
        assert len(endpoint.received) == 1
        assert "410" in (await outer.webhooks.show(number)).webhook.reason
        told = [event for event in await outer.events.list() if event.kind == "webhook.disabled"]
        assert [event.subject for event in told] == [number]
        endpoint.answer(200)
        await outer.webhooks.resume(number, "alice")
        await endpoint.has(3)
        assert endpoint.kinds == ["module.built", "module.built", "module.signed"]


async def test_a_message_that_is_refused_is_dead_after_some_attempts_and_can_be_sent_once_more(
    hub_paths: HubPaths, store: Store
) -> None:
    async def refuse_built(received: Received) -> web.Response:
        return web.Response(status=422 if received.kind == "module.built" else 200)

    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        endpoint.reply = refuse_built
        number, _ = await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.happen("module.built", "module.signed")
        await dead_count(outer, number, 1)
        await endpoint.has(6)
        assert endpoint.kinds == ["module.built"] * 5 + ["module.signed"]
        (dead,) = await outer.webhooks.dead(number)
        assert (dead.status, dead.attempts) == (422, 5)
        with pytest.raises(NotFound, match="no dead delivery"):
            await outer.webhooks.redeliver(number, dead.id + 1000, "alice")
        await outer.webhooks.redeliver(number, dead.id, "alice")  # refused again: dead again
        await endpoint.has(7)
        await dead_count(outer, number, 1)
        endpoint.answer(200)
        assert (await outer.webhooks.redeliver(number, None, "alice")).deliveries == 1
        await dead_count(outer, number, 0)
        assert endpoint.received[-1].id == endpoint.received[0].id


async def test_an_event_that_failed_for_too_long_is_dead_and_an_endpoint_too(
    hub_paths: HubPaths, store: Store, clock: SetClock
) -> None:
    pace = Pace(first_s=1.0, last_s=1.0, retry_s=100.0, give_up_s=1000.0)
    async with receiving() as endpoint, outside(hub_paths, store, clock, pace=pace) as outer:
        endpoint.answer(500)
        number, _ = await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.happen("module.built", "module.signed")
        await endpoint.has(1)
        clock.now += 200.0
        await outer.happen("device.enrolled")  # rings the bell: time has passed for nobody else
        await dead_count(outer, number, 1)
        clock.now += 2000.0
        await outer.happen("device.enrolled")
        await state_of(outer, number, "disabled")
        assert "nothing was delivered" in (await outer.webhooks.show(number)).webhook.reason


async def test_a_paused_webhook_gets_what_waited_unless_it_is_skipped(hub_paths: HubPaths, store: Store) -> None:
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        number, _ = await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.webhooks.pause(number, "alice")
        await outer.happen("module.built")
        assert (await outer.webhooks.show(number)).behind >= 1
        await outer.webhooks.resume(number, "alice")
        await endpoint.has(1)
        await outer.webhooks.pause(number, "alice")
        await outer.happen("module.signed")
        await outer.webhooks.resume(number, "alice", skip=True)
        await outer.happen("module.released")
        await endpoint.has(2)
        assert endpoint.kinds == ["module.built", "module.released"]


async def test_a_hub_that_is_killed_between_delivery_and_cursor_delivers_again_and_loses_nothing(
    hub_paths: HubPaths, store: Store
) -> None:
    command = (sys.executable, "-m", "support.outward", str(hub_paths.root))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    async with receiving() as endpoint, outside(hub_paths, store, delivering=False) as outer:
        await outer.hook(endpoint.url, kinds=("module.*",))
        await outer.happen("module.built", "module.signed", "module.released")
        first = await asyncio.create_subprocess_exec(*command, env=environment)

        async def kill_at_the_second(received: Received) -> web.Response:
            if received.kind == "module.signed":
                first.send_signal(signal.SIGKILL)  # it has been delivered, and the hub will never know
                await first.wait()
            return web.Response()

        endpoint.reply = kill_at_the_second
        await asyncio.wait_for(first.wait(), 60)
        endpoint.answer(200)
        second = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            await endpoint.has(4)
        finally:
            second.kill()
            await second.wait()
        assert endpoint.kinds == ["module.built", "module.signed", "module.signed", "module.released"]
        assert endpoint.received[1].id == endpoint.received[2].id


async def test_a_new_secret_signs_beside_the_old_one_for_a_while(
    hub_paths: HubPaths, store: Store, clock: SetClock
) -> None:
    async with receiving() as endpoint, outside(hub_paths, store, clock, delivering=False) as outer:
        number, old = await outer.hook(endpoint.url)
        new = (await outer.webhooks.rotate(number, NewSecret(grace_s=100.0), "alice")).secret
        assert (await outer.webhooks.ping(number, "alice", outer.sender)).delivered
        clock.now += 101.0
        assert (await outer.webhooks.ping(number, "alice", outer.sender)).delivered
        during, after = endpoint.received
        assert (during.signed_with(old), during.signed_with(new)) == (True, True)
        assert (after.signed_with(old), after.signed_with(new)) == (False, True)
        assert after.kind == "webhook.ping"
        assert after.is_cloud_event()


async def test_the_database_does_not_tell_a_secret_and_without_the_key_nothing_is_signed(
    hub_paths: HubPaths, store: Store
) -> None:
    async with receiving() as endpoint, outside(hub_paths, store, delivering=False) as outer:
        number, secret = await outer.hook(endpoint.url)
        content = b"".join(path.read_bytes() for path in hub_paths.root.glob("hub.sqlite3*"))
        assert secret.encode() not in content
        assert secret.removeprefix("whsec_").encode() not in content
    assert hub_paths.outward_key.stat().st_mode & 0o777 == 0o600
    hub_paths.outward_key.unlink()
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        with pytest.raises(Conflict, match="sealed with another key"):
            await outer.webhooks.ping(number, "alice", outer.sender)
        await outer.happen("module.built")
        await state_of(outer, number, "disabled")
        assert endpoint.received == []
        await outer.webhooks.rotate(number, NewSecret(), "alice")  # a new secret, and all is well


async def test_a_redirect_is_not_followed(hub_paths: HubPaths, store: Store) -> None:
    async with receiving() as inner, receiving() as endpoint, outside(hub_paths, store, delivering=False) as outer:
        endpoint.answer(307, Location=inner.url)
        number, _ = await outer.hook(endpoint.url)
        tried = await outer.webhooks.ping(number, "alice", outer.sender)
        assert (tried.delivered, tried.status) == (False, 307)
        assert inner.received == []


async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(hub_paths: HubPaths, store: Store) -> None:
    strict = OutwardSettings(plain_http=True)
    async with receiving() as endpoint, outside(hub_paths, store, settings=strict, delivering=False) as outer:
        number, _ = await outer.hook(endpoint.url)  # localhost: a name, which might be anything
        tried = await outer.webhooks.ping(number, "alice", outer.sender)
        assert not tried.delivered
        assert "private network" in tried.reason
        assert endpoint.received == []
        for host in ("127.0.0.1", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:127.0.0.1]", "100.64.0.1"):
            with pytest.raises(BadRequest, match="private network"):
                await outer.hook(f"http://{host}:{endpoint.port}/hook")
        for disguised in ("2130706433", "0x7f.1", "0177.0.0.1"):  # what getaddrinfo takes for 127.0.0.1
            number, _ = await outer.hook(f"http://{disguised}:{endpoint.port}/hook")
            assert not (await outer.webhooks.ping(number, "alice", outer.sender)).delivered
        assert endpoint.received == []


async def test_the_certificate_of_an_endpoint_is_checked(hub_paths: HubPaths, store: Store, tmp_path: Path) -> None:
    import ssl

    ca = make_ca("test endpoints")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_server(ca, "localhost").write(tmp_path, "endpoint"))
    (tmp_path / "ca.pem").write_text(ca.pem)
    async with receiving(context) as endpoint:
        async with outside(
            hub_paths, store, settings=OutwardSettings(private_addresses=True), delivering=False
        ) as outer:
            number, _ = await outer.hook(endpoint.url)
            tried = await outer.webhooks.ping(number, "alice", outer.sender)
            assert not tried.delivered
            assert "certificate" in tried.reason.lower()
            assert endpoint.received == []
        trusting = OutwardSettings(private_addresses=True, ca=str(tmp_path / "ca.pem"))
        async with outside(hub_paths, store, settings=trusting, delivering=False) as outer:
            assert (await outer.webhooks.ping(number, "alice", outer.sender)).delivered


async def test_an_endpoint_that_answers_without_end_is_cut_off(hub_paths: HubPaths, store: Store) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            poured.set()
        finally:
            writer.close()

    poured = asyncio.Event()
    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, outside(hub_paths, store, delivering=False) as outer:
        number, _ = await outer.hook(f"http://127.0.0.1:{port}/")
        assert (await outer.webhooks.ping(number, "alice", outer.sender)).delivered  # the status is all that is read
        await asyncio.wait_for(poured.wait(), 60)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "expected https"),
        ("http://example.com/", "plain_http"),
        ("https:///path", "expected a host"),
        ("https://ann:pass@example.com/", "no user and no password"),
        ("https://example.com/#part", "no fragment"),
        ("https://example.com/a b", "without blanks"),
        ("https://example.com:99999/", "out of range"),
        ("https://example.com/" + "a" * 2000, "at most 2000"),
    ],
)
async def test_a_url_that_is_none_is_refused(hub_paths: HubPaths, store: Store, url: str, words: str) -> None:
    async with outside(hub_paths, store, settings=OutwardSettings(), delivering=False) as outer:
        with pytest.raises(BadRequest, match=re.escape(words)) as refused:
            await outer.hook(url)
        assert "pass" not in refused.value.message.replace("password", "")
        assert await outer.webhooks.overview() == []


@pytest.mark.parametrize(
    "choice",
    [
        {"kinds": ("session.opened",)},
        {"kinds": ("user.*",)},
        {"kinds": ("Alert.*",)},
        {"kinds": ()},
        {"severity": "loud"},
        {"scope": "site = ="},
        {"secret": "whsec_c2hvcnQ="},
        {"secret": "tell"},
        {"module": "m" * 64},
    ],
)
async def test_a_choice_that_is_none_is_refused(hub_paths: HubPaths, store: Store, choice: dict[str, object]) -> None:
    async with outside(hub_paths, store, delivering=False) as outer:
        with pytest.raises(BadRequest):
            await outer.webhooks.create(NewWebhook("https://example.com/", **choice), "alice")  # type: ignore[arg-type]
        assert await outer.webhooks.overview() == []


async def test_there_are_not_more_webhooks_than_the_hub_can_serve(hub_paths: HubPaths, store: Store) -> None:
    async with outside(hub_paths, store, delivering=False) as outer:
        for number in range(64):
            await outer.hook(f"https://example.com/{number}")
        with pytest.raises(Conflict, match="64 webhooks"):
            await outer.hook("https://example.com/one-more")


async def test_a_webhook_that_is_deleted_leaves_nothing(hub_paths: HubPaths, store: Store) -> None:
    async with receiving() as endpoint, outside(hub_paths, store) as outer:
        number, _ = await outer.hook(endpoint.url)
        await outer.happen("module.built")
        await endpoint.has(1)
        await outer.webhooks.delete(number, "alice")
        with pytest.raises(NotFound, match="no webhook"):
            await outer.webhooks.show(number)
        actors = {event.kind: event.actor for event in await outer.events.list()}
        assert actors["webhook.deleted"] == "alice"


def test_what_is_shown_of_a_url_in_the_audit_trail_is_its_origin() -> None:
    from cloud_hub.outward.webhooks import origin_of

    assert origin_of("https://hooks.example.com:9/T00/secret?x=1") == "https://hooks.example.com:9"


def test_pauses_grow_to_their_ceiling_and_heed_the_endpoint() -> None:
    pace = Pace(first_s=5.0, last_s=3600.0)
    assert [pace.delay_s(n, 0.0, lambda: 1.0) for n in (1, 2, 3, 100)] == [5.0, 10.0, 20.0, 3600.0]
    assert pace.delay_s(1, 0.0, lambda: 0.0) == 2.5
    assert pace.delay_s(1, 120.0, lambda: 1.0) == 120.0
    assert pace.delay_s(1, 1e9, lambda: 1.0) == 3600.0
