"""The client against a real hub's API over TLS, and against the other party when that breaks off."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from cloud_hub.api.answers import Pieces
from cloud_hub.api.route import REVISION_HEADER, Call, Route
from cloud_hub.chain import Event
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.datasets.counts import CountQuery
from cloud_hub.errors import Unprocessable
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.monitoring.samples import SampleQuery
from cloud_hub.operations.book import Operation, OperationState
from cloud_hub.operations.progress import tell
from cloud_hub.operator import persisting, stream_calls
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.errors import HubLost, HubUnreachable, Refused
from cloud_hub.operator.long_work import work_out
from cloud_hub.operator.rows import Rows
from cloud_hub.people import NewApiToken
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from support.apis import Api, serving_api
from support.waiting import until

DEADLINE_S = 40.0
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "hub"
    api, mqtt = free_ports(2)
    asyncio.run(initialise(folder, HubConfig(dev=True, api_port=api, mqtt_port=mqtt, requests_per_s=1e6)))
    return folder


@pytest.fixture
def paths(prepared: Path, tmp_path: Path) -> HubPaths:
    shutil.copytree(prepared, tmp_path / "hub")
    return HubPaths(tmp_path / "hub")


@pytest.fixture
async def hub(paths: HubPaths) -> AsyncIterator[HubClient]:
    async with serving_api(paths) as api, HubClient(api.context) as client:
        yield client


# --- pages ------------------------------------------------------------------------------------------------------


async def test_all_pages_of_a_list_are_followed_while_rows_are_added(hub: HubClient) -> None:
    for number in range(7):
        await hub.create_api_token(f"t{number}", Role.VIEWER)
    events = await hub.events(limit=3)
    assert isinstance(events, Rows)
    assert events.next
    seen: list[int] = []
    async for event in hub.every(hub.events(limit=3)):
        if not seen:
            await hub.create_api_token("late", Role.VIEWER)
        seen.append(event.id)
    newest = seen[0]
    assert seen == list(range(newest, 0, -1))
    assert [len(page) async for page in hub.pages(hub.events(limit=1000))] == [newest + 1]
    assert len(await hub.all_of(hub.events(limit=2), most=5)) == 5


async def test_the_number_of_all_rows_is_told_where_it_is_known(hub: HubClient) -> None:
    tokens = await hub.api_tokens()
    assert isinstance(tokens, Rows)
    assert (tokens.total, tokens.next) == (len(tokens), "")


# --- states -----------------------------------------------------------------------------------------------------


async def test_a_change_of_what_was_not_seen_is_refused(hub: HubClient) -> None:
    await hub.add_user("eve", PASSWORD, Role.VIEWER)
    seen = await hub.seen(hub.user("eve"))
    assert (seen.value.role, bool(seen.etag)) == (Role.VIEWER, True)
    await hub.change_user("eve", role=Role.OPERATOR)
    with hub.only_if(seen.etag), pytest.raises(Refused, match="changed meanwhile") as refused:
        await hub.change_user("eve", role=Role.PUBLISHER)
    assert (refused.value.status, refused.value.key) == (412, "etag-mismatch")
    again = await hub.seen(hub.user("eve"))
    with hub.only_if(again.etag):
        assert (await hub.change_user("eve", role=Role.PUBLISHER)).role is Role.PUBLISHER


# --- events as they happen --------------------------------------------------------------------------------------


async def test_the_stream_goes_on_behind_a_restart_of_the_hub(paths: HubPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_calls, "MOST_WAIT_S", 0.2)
    heard: list[int] = []

    async def listen(hub: HubClient) -> None:
        async with aclosing(hub.stream(after=0)) as events:
            async for event in events:
                heard.append(event.id)  # noqa: PERF401 - it is read meanwhile

    def has_come(event: int) -> bool:
        return bool(heard) and heard[-1] >= event

    async with HubClient(HubContext.load(paths.context)) as hub:
        listening = asyncio.create_task(listen(hub))
        try:
            for round_ in range(3):
                async with serving_api(paths):
                    await hub.create_api_token(f"t{round_}", Role.VIEWER)
                    newest = (await hub.events(limit=1))[0].id
                    await until(partial(has_come, newest), "the events to come", DEADLINE_S)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    assert heard == list(range(1, heard[-1] + 1))


async def test_a_stream_that_the_hub_refuses_ends(hub: HubClient) -> None:
    made = await hub.create_api_token("gone", Role.VIEWER)
    await hub.revoke_api_token(made.id)
    context = msgspec.structs.replace(hub.context, token=made.token)
    async with HubClient(context) as stranger, aclosing(stranger.stream()) as events:
        with pytest.raises(Refused) as refused:
            await anext(events)
    assert refused.value.status == 401
    with pytest.raises(Refused, match="no rollout"):
        async with aclosing(hub.stream_rollout("nothing")) as events:
            await anext(events)


# --- what breaks off --------------------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def other_party(paths: HubPaths, answer: Answer) -> AsyncIterator[HubClient]:
    """Something that speaks TLS with the hub's certificate, and says what the test wants."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(paths.server_crt, paths.server_key)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", HubConfig.load(paths.root).api_port, ssl_context=tls).start()
        async with HubClient(HubContext.load(paths.context)) as hub:
            yield hub
    finally:
        await runner.cleanup()


class Breaking:
    """Does what it is asked for, and breaks off before it has answered, so many times."""

    def __init__(self, times: int, revision: str = "2") -> None:
        self.left, self.headers = times, {REVISION_HEADER: revision} if revision else {}
        self.keys: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/health"):
            return web.json_response({"status": "ok", "version": "0", "broker": True}, headers=self.headers)
        self.keys.append(request.headers.get("Idempotency-Key", ""))
        if self.left > 0:
            self.left -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        done = {"token": "x", "id": "y", "expires_at": 1.0}
        return web.json_response(done if request.method == "POST" else [], headers=self.headers)


async def test_a_creation_that_is_cut_off_is_asked_again_under_its_key(paths: HubPaths) -> None:
    party = Breaking(2)
    async with other_party(paths, party.answer) as hub:
        assert (await hub.create_api_token("t", Role.VIEWER)).id == "y"
    assert len(party.keys) == 3
    assert len(set(party.keys)) == 1
    assert party.keys[0]


async def test_each_creation_has_a_key_of_its_own(paths: HubPaths) -> None:
    party = Breaking(0)
    async with other_party(paths, party.answer) as hub:
        await hub.create_api_token("t", Role.VIEWER)
        await hub.create_api_token("t", Role.VIEWER)
    assert len(set(party.keys)) == 2


async def test_a_hub_that_remembers_no_keys_is_not_asked_twice(paths: HubPaths) -> None:
    party = Breaking(1, revision="")
    async with other_party(paths, party.answer) as hub:
        with pytest.raises(HubLost):
            await hub.create_api_token("t", Role.VIEWER)
    assert len(party.keys) == 1


async def test_what_changes_nothing_is_asked_again_of_any_hub(paths: HubPaths) -> None:
    party = Breaking(2, revision="")
    async with other_party(paths, party.answer) as hub:
        assert await hub.api_tokens() == []


async def test_asking_again_has_an_end(paths: HubPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persisting, "RETRY_S", 0.2)
    party = Breaking(10**9)
    async with other_party(paths, party.answer) as hub:
        with pytest.raises(HubLost, match="is the hub running"):
            await hub.create_api_token("t", Role.VIEWER)
    assert len(party.keys) >= 2


async def test_a_hub_that_is_not_there_is_told_at_once(paths: HubPaths) -> None:
    async with HubClient(HubContext.load(paths.context)) as hub:
        with pytest.raises(HubUnreachable, match="is the hub running"):
            await hub.create_api_token("t", Role.VIEWER)


@pytest.mark.parametrize("link", ["https://elsewhere.example/api/v1/users?after=x", "/other/users?after=x"])
async def test_a_link_to_elsewhere_is_not_followed(paths: HubPaths, link: str) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response([], headers={"Link": f'<{link}>; rel="next"'})

    async with other_party(paths, answer) as hub:
        with pytest.raises(HubUnreachable, match="the next page is at"):
            await hub.users()


async def test_a_list_without_an_end_is_noticed(paths: HubPaths) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response([], headers={"Link": '</api/v1/users?after=x>; rel="next"'})

    async with other_party(paths, answer) as hub:
        with pytest.raises(HubUnreachable, match="is the page itself"):
            await hub.all_of(hub.users())


@pytest.mark.parametrize(
    ("body", "key", "message"),
    [
        ({"error": {"key": "old", "message": "as before", "fields": {"a": 1}}}, "old", "as before"),
        ({"type": "urn:x", "key": "new", "detail": "as now", "fields": {"a": 1}}, "new", "as now"),
        ({"type": "about:blank", "title": "by a proxy"}, "http-error", "status 503"),
        ([], "http-error", "is this a Mooring hub"),
    ],
)
async def test_a_refusal_is_read_in_either_form(paths: HubPaths, body: object, key: str, message: str) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=503, headers={"Retry-After": "7"})

    async with other_party(paths, answer) as hub:
        with pytest.raises(Refused, match=message) as refused:
            await hub.users()
    assert (refused.value.status, refused.value.key) == (503, key)
    assert key == "http-error" or (refused.value.fields, refused.value.retry_after_s) == ({"a": 1}, 7.0)


# --- long operations --------------------------------------------------------------------------------------------


class Wish(msgspec.Struct, frozen=True):
    how: str = "well"


class Made(msgspec.Struct, frozen=True):
    word: str


class Workshop:
    """Routes that take long: they go on when the test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = False

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", "/slow", self.make, "Make", Made, body=Wish, status=201, role=Role.VIEWER, slow=True),
            Route("GET", "/slow/file", self.write, "Write", media="text/plain", role=Role.VIEWER, slow=True),
            Route("POST", "/quick", self.make, "Make at once", Made, body=Wish, status=201, role=Role.VIEWER),
        )

    async def make(self, _rooms: Rooms, call: Call) -> Made:
        tell("making", 3, 10)
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if call.body.how == "badly":
            raise Unprocessable("cannot-be-made", "it cannot be made", how="badly")
        if call.body.how == "wrongly":
            raise RuntimeError("the secret of the hub")
        return Made(f"{call.body.how} for {call.actor}")

    async def write(self, _rooms: Rooms, _call: Call) -> Pieces:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"line {number}\n".encode()

        return Pieces("text/plain", pieces())


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@asynccontextmanager
async def working(paths: HubPaths, workshop: Workshop) -> AsyncIterator[tuple[Api, HubClient]]:
    async with serving_api(paths, workshop.routes) as api, HubClient(api.context) as hub:
        yield api, hub


async def begin(hub: HubClient, how: str = "well", method: str = "POST", path: str = "/slow") -> Operation:
    body = Wish(how) if method == "POST" else None
    got = await hub._http.exchange(method, path, body, headers={"Prefer": "respond-async"})
    assert (got.status, got.headers["Preference-Applied"]) == (202, "respond-async")
    begun = hub._http.parsed(Operation, got)
    assert got.headers["Location"] == f"/api/v1/operations/{begun.id}"
    return begun


async def ended(hub: HubClient, operation: str) -> Operation:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := await hub.operation(operation, wait_s=5)).state.ended:
            pass
    return found


async def test_long_work_is_waited_for_and_told_on_the_way(paths: HubPaths, workshop: Workshop) -> None:
    heard: list[Operation] = []

    def watch(operation: Operation) -> None:
        heard.append(operation)
        if operation.doing:
            workshop.go_on.set()

    async with working(paths, workshop) as (_, hub):
        made = await asyncio.wait_for(work_out(hub._http, Made, "/slow", Wish(), watch), DEADLINE_S)
        assert made.word.startswith("well for ")
        assert any((one.doing, one.done, one.total) == ("making", 3, 10) for one in heard)
        assert heard[-1].state is OperationState.DONE
        told = [(event.kind, event.subject) for event in await hub.events(kind="operation.ended")]
        assert told == [("operation.ended", heard[-1].id)]


async def test_without_the_preference_the_answer_is_waited_for(paths: HubPaths, workshop: Workshop) -> None:
    workshop.go_on.set()
    async with working(paths, workshop) as (_, hub):
        got = await hub._http.exchange("POST", "/slow", Wish())
        assert (got.status, got.body) == (201, b'{"word":"well for operator"}')
        got = await hub._http.exchange("POST", "/quick", Wish(), headers={"Prefer": "respond-async"})
        assert got.status == 201  # passed over where nothing takes long
        assert await hub.operations() == []


@pytest.mark.parametrize(("how", "status", "key"), [("badly", 422, "cannot-be-made"), ("wrongly", 500, "internal")])
async def test_long_work_that_fails_fails_as_it_would_have_at_once(
    paths: HubPaths, workshop: Workshop, how: str, status: int, key: str
) -> None:
    workshop.go_on.set()
    async with working(paths, workshop) as (_, hub):
        with pytest.raises(Refused) as refused:
            await work_out(hub._http, Made, "/slow", Wish(how))
        assert (refused.value.status, refused.value.key) == (status, key)
        assert "secret" not in refused.value.message
        (operation,) = await hub.operations(state="failed")
        assert operation.status == status


async def test_a_stream_of_bytes_becomes_a_file_to_download(
    paths: HubPaths, workshop: Workshop, tmp_path: Path
) -> None:
    async with working(paths, workshop) as (_, hub):
        operation = await ended(hub, (await begin(hub, method="GET", path="/slow/file")).id)
        assert (operation.state, operation.done) == (OperationState.DONE, 21)
        assert await hub.operation_result(operation.id, tmp_path / "out") == 21
        assert (tmp_path / "out").read_text() == "line 0\nline 1\nline 2\n"


async def test_exports_are_made_at_the_hub_and_fetched(hub: HubClient, tmp_path: Path) -> None:
    await hub.create_api_token("t", Role.VIEWER)
    audit = await ended(hub, (await hub.begin_audit_export()).id)
    await hub.operation_result(audit.id, tmp_path / "audit")
    events = [msgspec.json.decode(line, type=Event) for line in (tmp_path / "audit").read_bytes().splitlines()]
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    samples = await ended(hub, (await hub.begin_samples_export(SampleQuery())).id)
    assert await hub.operation_result(samples.id, tmp_path / "samples") == 0
    windows = await ended(hub, (await hub.begin_windows_export(CountQuery(module="nothing"))).id)
    assert (windows.state, windows.status) == (OperationState.FAILED, 404)


async def test_long_work_is_cancelled_with_who_waits_for_it(paths: HubPaths, workshop: Workshop) -> None:
    async with working(paths, workshop) as (_, hub):
        heard: list[Operation] = []
        waiting = asyncio.create_task(work_out(hub._http, Made, "/slow", Wish(), heard.append))
        await until(lambda: bool(heard) and workshop.begun.is_set(), "the work to have begun", DEADLINE_S)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: workshop.cancelled, "the work to be cancelled", DEADLINE_S)
        (operation,) = await hub.operations()
        assert (operation.state, operation.result) == (OperationState.CANCELLED, "")
        with pytest.raises(Refused, match="has ended as cancelled"):
            await hub.cancel_operation(operation.id)
        with pytest.raises(Refused, match="it has no result"):
            await hub.operation_result(operation.id, paths.root / "nothing")


async def test_what_a_stopped_hub_was_at_is_interrupted(paths: HubPaths, workshop: Workshop) -> None:
    async with working(paths, workshop) as (_, hub):
        begun = await begin(hub)
        await asyncio.wait_for(workshop.begun.wait(), DEADLINE_S)
    assert workshop.cancelled
    async with working(paths, Workshop()) as (_, hub):
        assert (await hub.operation(begun.id)).state is OperationState.INTERRUPTED


async def test_an_operation_is_its_owners_alone(paths: HubPaths, workshop: Workshop) -> None:
    workshop.go_on.set()
    async with working(paths, workshop) as (api, hub):
        mine = await ended(hub, (await begin(hub)).id)
        made = await api.rooms.people.create_token(NewApiToken("bob", Role.PUBLISHER), "test")
        async with HubClient(msgspec.structs.replace(api.context, token=made.token)) as bob:
            his = await ended(bob, (await begin(bob)).id)
            assert [one.id for one in await bob.operations()] == [his.id]
            for call in (bob.operation(mine.id), bob.cancel_operation(mine.id)):
                with pytest.raises(Refused, match="no operation"):
                    await call
        assert [one.id for one in await hub.all_of(hub.operations(limit=1))] == [his.id, mine.id]


async def test_only_so_many_operations_wait(paths: HubPaths, workshop: Workshop) -> None:
    config = HubConfig.load(paths.root)
    api = msgspec.structs.replace(config.api, operations=1, operations_waiting=1)
    msgspec.structs.replace(config, api=api).write(paths.root)
    async with working(paths, workshop) as (_, hub):
        first, second = await begin(hub), await begin(hub)
        with pytest.raises(Refused, match="expected at most 2") as refused:
            await begin(hub)
        assert (refused.value.key, refused.value.retry_after_s) == ("operations-full", 10.0)
        assert (await hub.operation(second.id)).state is OperationState.WAITING
        workshop.go_on.set()
        assert [(await ended(hub, one.id)).state for one in (first, second)] == [OperationState.DONE] * 2


# --- the command ------------------------------------------------------------------------------------------------


async def mooring(paths: HubPaths, *arguments: str) -> tuple[int, str]:
    """Status and output of the command, as a person has it."""
    command = str(Path(sys.executable).with_name("mooring"))
    process = await asyncio.create_subprocess_exec(
        command,
        "--context",
        str(paths.context),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 2 * DEADLINE_S)
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.timeout(180)  # four commands are started
async def test_the_command_shows_waits_for_fetches_and_ends_operations(
    paths: HubPaths, workshop: Workshop, tmp_path: Path
) -> None:
    async with working(paths, workshop) as (_, hub):
        first, second = await begin(hub), await begin(hub, "badly")
        status, said = await mooring(paths, "operation", "list", "--state", "running")
        assert status == 0, said
        assert first.id in said
        assert "making 3 of 10" in said
        status, said = await mooring(paths, "operation", "cancel", first.id)
        assert (status, "cancelled" in said) == (0, True), said
        workshop.go_on.set()
        status, said = await mooring(paths, "operation", "wait", second.id)
        assert (status, "has ended as failed" in said) == (1, True), said
        third = await ended(hub, (await begin(hub, method="GET", path="/slow/file")).id)
        status, said = await mooring(paths, "operation", "result", third.id, str(tmp_path / "out"))
        assert (status, (tmp_path / "out").read_bytes()[:7]) == (0, b"line 0\n"), said


@pytest.mark.timeout(180)
async def test_the_command_follows_events(paths: HubPaths) -> None:
    async with serving_api(paths) as api, HubClient(api.context) as hub:
        following = asyncio.create_task(
            mooring(paths, "events", "follow", "--kind", "api-token.*", "--after", "0", "--count", "2", "-o", "json")
        )
        for number in range(2):
            await hub.create_api_token(f"t{number}", Role.VIEWER)
        status, said = await following
        assert status == 0, said
        events = [msgspec.json.decode(line, type=Event) for line in said.splitlines()]
        assert [event.kind for event in events] == ["api-token.created"] * 2
