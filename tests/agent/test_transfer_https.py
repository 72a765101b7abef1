"""Files over HTTPS: ranges, kept connections, addresses that end, hosts that lie, stall, dribble or send elsewhere."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.errors import EnrolError, LinkDown, LinkError, LinkTimeout, Refused
from agent.https import exchange
from agent.identity import pinned_tls
from agent.link import Link
from agent.transfer import offers
from agent.transfer.https import HttpsSource
from agent.transfer.offers import Offering
from modules.bundle import FileEntry
from modules.messages import Offered, Offers, PatchOffer, Refusal, Way
from support.certificates import Pair, make_ca
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.waiting import until
from support.web import Answer, Asked, Web, ranged, reply, web

DATA = bytes(range(256)) * 400
FILE, OTHER, PATCH, BASE = "a" * 64, "b" * 64, "c" * 64, "d" * 64
PATH = "/api/v1/blobs/" + FILE


@pytest.fixture
def ca() -> Pair:
    return make_ca("hub CA")


@pytest.fixture
async def hub(broker: Mosquitto) -> AsyncIterator[FakeHub]:
    async with FakeHub(broker) as hub:
        hub.offer = saying(PATH)
        yield hub


@pytest.fixture
async def link(broker: Mosquitto, hub: FakeHub) -> AsyncIterator[Link]:
    async with running(make_link(broker)) as link:
        yield link


def saying(*urls: str) -> Callable[[Offers], Offered]:
    """Offers these addresses, one after the other; the last stays."""
    left = list(urls)

    def answer(offers: Offers) -> Offered:
        url = left.pop(0) if len(left) > 1 else left[0]
        return Offered(tuple(Way(file, url, f"grant-{file[:4]}") for file in offers.files), 600.0)

    return answer


async def honest(asked: Asked, writer: asyncio.StreamWriter) -> None:
    ranged(writer, asked, DATA)


@asynccontextmanager
async def served(link: Link, ca: Pair, folder: Path, answer: Answer = honest) -> AsyncIterator[tuple[Web, HttpsSource]]:
    """A server in the place of the hub's API, and a source that reads from it."""
    async with web(folder, ca, answer) as there:
        source = HttpsSource(Offering(link), there.origin, lambda: pinned_tls(ca.pem), lambda: pinned_tls(ca.pem))
        try:
            yield there, source
        finally:
            source.close()


async def test_ranges_come_from_the_address_that_the_hub_offers_over_kept_connections(
    link: Link, ca: Pair, tmp_path: Path
) -> None:
    async with served(link, ca, tmp_path) as (there, source):
        for offset in range(0, len(DATA), 10_000):
            assert await source.read(FILE, offset, 10_000, 20) == DATA[offset : offset + 10_000]
        assert await source.read(FILE, len(DATA), 10, 20) == b""
        assert {one.target for one in there.asked} == {PATH}
        assert there.connections == 1
        assert set(there.asked[0].headers) == {"host", "accept-encoding", "range"}, "nothing secret is sent"


async def test_many_ranges_at_once_come_over_a_few_connections(link: Link, ca: Pair, tmp_path: Path) -> None:
    async with served(link, ca, tmp_path) as (there, source):
        got = await asyncio.gather(*(source.read(FILE, at * 1000, 1000, 20) for at in range(60)))
        assert b"".join(got) == DATA[:60_000]
        assert there.connections <= 6


async def test_a_kept_connection_that_the_server_ended_meanwhile_costs_nothing(
    link: Link, ca: Pair, tmp_path: Path
) -> None:
    async def once(asked: Asked, writer: asyncio.StreamWriter) -> None:
        ranged(writer, asked, DATA)
        await writer.drain()
        writer.close()

    async with served(link, ca, tmp_path, once) as (there, source):
        for offset in range(5):
            assert await source.read(FILE, offset, 1, 20) == DATA[offset : offset + 1]
        assert there.connections >= 5


async def test_an_address_that_has_ended_is_asked_for_anew_once(
    link: Link, hub: FakeHub, ca: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "AGAIN_S", 0.0)
    hub.offer = saying(PATH + "?right=old", PATH + "?right=new")

    async def strict(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.target.endswith("new"):
            ranged(writer, asked, DATA)
        else:
            reply(writer, 403, b"it has ended")

    async with served(link, ca, tmp_path, strict) as (_, source):
        assert await source.read(FILE, 5, 5, 20) == DATA[5:10]
        assert len(hub.asked_offers) == 2


async def test_a_right_that_is_refused_again_and_again_does_not_become_questions_without_end(
    link: Link, hub: FakeHub, ca: Pair, tmp_path: Path
) -> None:
    async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply(writer, 403)

    async with served(link, ca, tmp_path, never) as (_, source):
        for _ in range(20):
            with pytest.raises(Refused, match=r"403|no address") as caught:
                await source.read(FILE, 0, 5, 20)
            assert caught.value.key in {"not-allowed", "not-found"}
        assert len(hub.asked_offers) == 1


@pytest.mark.parametrize(
    ("status", "kind", "key"),
    [(404, Refused, "not-found"), (429, Refused, "busy"), (503, Refused, "busy"), (500, LinkError, "bad-answer"),
     (204, LinkError, "bad-answer")],
)  # fmt: skip
async def test_what_a_server_says_no_with_becomes_the_fitting_error(
    link: Link, ca: Pair, tmp_path: Path, status: int, kind: type[LinkError], key: str
) -> None:
    async def no(asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply(writer, status)

    async with served(link, ca, tmp_path, no) as (_, source):
        with pytest.raises(kind) as caught:
            await source.read(FILE, 10, 10, 20)
        assert caught.value.key == key


async def test_a_server_that_ignores_ranges_is_good_for_the_beginning_of_a_file_only(
    link: Link, ca: Pair, tmp_path: Path
) -> None:
    async def whole(asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply(writer, 200, DATA)

    async with served(link, ca, tmp_path, whole) as (_, source):
        assert await source.read(FILE, 0, 100, 20) == DATA[:100]
        with pytest.raises(LinkError, match="expected at most 100 bytes from 7, got status 200"):
            await source.read(FILE, 7, 100, 20)


@pytest.mark.parametrize("lie", ["elsewhere", "too much", "no range"])
async def test_an_answer_to_another_question_is_refused(link: Link, ca: Pair, tmp_path: Path, lie: str) -> None:
    async def lying(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if lie == "elsewhere":
            reply(writer, 206, DATA[:10], Content_Range=f"bytes 0-9/{len(DATA)}")
        elif lie == "too much":
            reply(writer, 206, DATA, Content_Range=f"bytes 10-{len(DATA)}/{len(DATA)}")
        else:
            reply(writer, 206, DATA[:10])

    async with served(link, ca, tmp_path, lying) as (_, source):
        with pytest.raises(LinkError) as caught:
            await source.read(FILE, 10, 10, 20)
        assert caught.value.key == "bad-answer"


async def test_an_answer_that_ends_early_is_no_answer(link: Link, ca: Pair, tmp_path: Path) -> None:
    async def cut(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 206 X\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/99\r\n\r\nonly")
        await writer.drain()
        writer.close()

    async with served(link, ca, tmp_path, cut) as (_, source):
        with pytest.raises(LinkDown):
            await source.read(FILE, 0, 10, 20)


async def test_a_server_that_never_answers_ends_the_request_at_its_deadline(
    link: Link, ca: Pair, tmp_path: Path
) -> None:
    async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with served(link, ca, tmp_path, silent) as (_, source):
        with pytest.raises(LinkTimeout):
            await source.read(FILE, 0, 10, 0.3)


async def test_a_server_that_dribbles_ends_the_request_at_its_deadline_too(
    link: Link, ca: Pair, tmp_path: Path
) -> None:
    """Each byte comes well within any timeout on a single read; only one over all of them ends this."""
    async with served(link, ca, tmp_path, dribbling) as (_, source):
        with pytest.raises(LinkTimeout):
            await source.read(FILE, 0, 100_000, 0.5)


async def dribbling(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 206 X\r\nContent-Length: 100000\r\nContent-Range: bytes 0-99999/100000\r\n\r\n")
    with suppress(ConnectionError):
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)


async def test_an_exchange_with_a_hub_that_dribbles_ends_at_its_deadline(ca: Pair, tmp_path: Path) -> None:
    async with web(tmp_path, ca, dribbling) as there:
        with pytest.raises(EnrolError, match=r"took too long|timed out") as caught:
            await asyncio.to_thread(
                exchange, EnrolError, *there.origin, pinned_tls(ca.pem), "GET", "/x", None, timeout_s=0.5
            )
        assert caught.value.key == "unreachable"


async def test_a_read_that_nobody_waits_for_any_more_frees_its_thread(link: Link, ca: Pair, tmp_path: Path) -> None:
    """As many as there are threads: one more could not begin before a deadline of ten minutes."""
    stuck = asyncio.Semaphore(0)

    async def first_ones(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.range[0] < 6:
            stuck.release()
            await asyncio.Event().wait()
        ranged(writer, asked, DATA)

    async with served(link, ca, tmp_path, first_ones) as (_, source):
        reads = [asyncio.create_task(source.read(FILE, at, 1, 600)) for at in range(6)]
        for _ in reads:
            await asyncio.wait_for(stuck.acquire(), 20)
        for read in reads:
            read.cancel()
        assert await source.read(FILE, 100, 1, 20) == DATA[100:101]
        await asyncio.gather(*reads, return_exceptions=True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_few_redirects_are_followed_with_the_range(link: Link, ca: Pair, tmp_path: Path, status: int) -> None:
    async def moved(asked: Asked, writer: asyncio.StreamWriter) -> None:
        steps = asked.target.count("/moved")
        if steps < 3:
            reply(writer, status, Location=asked.target + "/moved")
        else:
            ranged(writer, asked, DATA)

    async with served(link, ca, tmp_path, moved) as (there, source):
        assert await source.read(FILE, 3, 3, 20) == DATA[3:6]
        assert [one.range for one in there.asked] == [(3, 6)] * 4


async def test_redirects_in_a_circle_end(link: Link, ca: Pair, tmp_path: Path) -> None:
    async def circle(asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply(writer, 302, Location=asked.target)

    async with served(link, ca, tmp_path, circle) as (there, source):
        with pytest.raises(LinkError, match="at most 3 redirects"):
            await source.read(FILE, 0, 3, 20)
        assert len(there.asked) == 4


@pytest.mark.parametrize("target", ["http://localhost/x", "file:///etc/passwd", "", "ftp://localhost/x"])
async def test_a_redirect_away_from_https_is_not_followed(link: Link, ca: Pair, tmp_path: Path, target: str) -> None:
    async def away(asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply(writer, 302, Location=target)

    async with served(link, ca, tmp_path, away) as (there, source):
        with pytest.raises(LinkError) as caught:
            await source.read(FILE, 0, 3, 20)
        assert caught.value.key == "bad-answer"
        assert len(there.asked) <= 4


@pytest.mark.parametrize(
    "url", ["http://localhost/x", "https://user:word@localhost/x", "https://localhost:99999/", "https://[x/",
            "https://localhost/a b", "https://localhost/\r\nX: y", "https://localhost/" + "x" * 5000],
)  # fmt: skip
async def test_an_address_that_is_not_plain_https_is_not_used(
    link: Link, hub: FakeHub, ca: Pair, tmp_path: Path, url: str
) -> None:
    hub.offer = saying(url)
    async with served(link, ca, tmp_path) as (there, source):
        with pytest.raises(LinkError) as caught:
            await source.read(FILE, 0, 3, 20)
        assert caught.value.key == "bad-answer"
        assert "right" not in str(caught.value)
        assert there.asked == []


async def test_the_hub_is_believed_by_its_own_authority_only(link: Link, ca: Pair, tmp_path: Path) -> None:
    other = make_ca("somebody's CA")
    async with web(tmp_path, other, honest) as there:
        source = HttpsSource(Offering(link), there.origin, lambda: pinned_tls(ca.pem), lambda: pinned_tls(other.pem))
        try:
            with pytest.raises(LinkError, match="certificate") as caught:
                await source.read(FILE, 0, 3, 20)
            assert caught.value.key == "bad-certificate"
            assert there.asked == []
        finally:
            source.close()


async def test_another_host_is_believed_by_the_systems_authorities_only(
    link: Link, hub: FakeHub, ca: Pair, tmp_path: Path
) -> None:
    public = make_ca("a public CA")
    async with web(tmp_path / "a", public, honest) as store, web(tmp_path / "b", ca, honest) as impostor:
        source = HttpsSource(
            Offering(link), ("localhost", 1), lambda: pinned_tls(ca.pem), lambda: pinned_tls(public.pem)
        )
        try:
            hub.offer = lambda said: Offered(
                tuple(Way(one, (store if one == FILE else impostor).url + "/x") for one in said.files), 600.0
            )
            assert await source.read(FILE, 1, 2, 20) == DATA[1:3]
            with pytest.raises(LinkError, match="certificate"):
                await source.read(OTHER, 1, 2, 20)
            assert impostor.asked == []
        finally:
            source.close()


async def test_a_certificate_for_another_name_is_not_believed(link: Link, ca: Pair, tmp_path: Path) -> None:
    async with web(tmp_path, ca, honest, name="elsewhere.example") as there:
        source = HttpsSource(Offering(link), there.origin, lambda: pinned_tls(ca.pem))
        try:
            with pytest.raises(LinkError, match="certificate"):
                await source.read(FILE, 0, 3, 20)
        finally:
            source.close()


async def test_a_host_that_is_not_there_is_down(link: Link, ca: Pair) -> None:
    source = HttpsSource(Offering(link), ("localhost", 1), lambda: pinned_tls(ca.pem))
    try:
        with pytest.raises(LinkDown):
            await source.read(FILE, 0, 3, 20)
    finally:
        source.close()


async def test_idle_connections_are_closed_and_nothing_is_left_at_the_end(link: Link, ca: Pair, tmp_path: Path) -> None:
    async with served(link, ca, tmp_path) as (there, source):
        await source.read(FILE, 0, 1, 20)
        source._pool.sweep(0.0)
        await source.read(FILE, 0, 1, 20)
        assert there.connections == 2
    await until(lambda: not [one for one in threading.enumerate() if one.name.startswith("https")], "the threads")


# What the hub offers


def entry(digest: str) -> FileEntry:
    return FileEntry("model.onnx", 0, digest, ())


async def test_an_offer_is_asked_for_once_while_it_holds(link: Link, hub: FakeHub) -> None:
    now = [0.0]
    offering = Offering(link, lambda: now[0])
    for _ in range(5):
        assert await offering.url(FILE) == PATH
        assert await offering.grant(FILE) == "grant-aaaa"
    assert await offering.ways([entry(FILE)], []) == {FILE: Way(FILE, PATH, "grant-aaaa")}
    assert len(hub.asked_offers) == 1
    now[0] = 601.0
    assert await offering.url(FILE) == PATH
    assert len(hub.asked_offers) == 2


async def test_those_who_ask_at_the_same_time_ask_the_hub_once(link: Link, hub: FakeHub) -> None:
    offering = Offering(link)
    assert set(await asyncio.gather(*(offering.url(FILE) for _ in range(50)))) == {PATH}
    assert len(hub.asked_offers) == 1


async def test_many_files_are_asked_for_in_a_few_questions(link: Link, hub: FakeHub) -> None:
    digests = [f"{number:064x}" for number in range(150)]
    ways = await Offering(link).ways([entry(digest) for digest in digests], [])
    assert set(ways) == set(digests)
    assert [len(one.files) for one in hub.asked_offers] == [64, 64, 22]


async def test_a_hub_of_before_is_asked_rarely_on_this_connection_and_at_once_on_the_next(
    link: Link, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "ASK_S", 0.1)
    hub.offer = lambda _: None
    now = [0.0]
    offering = Offering(link, lambda: now[0])
    for asked in (1, 2, 3):
        for _ in range(10):
            assert await offering.ways([entry(FILE)], [BASE]) == {}
        assert len(hub.asked_offers) == asked
        now[0] += offers.SILENT_FIRST_S * 2 ** (asked - 1)
    session = link.session
    link.reconnect()
    await until(lambda: link.session > session and link.connected.is_set(), "the next connection")
    monkeypatch.setattr(offers, "ASK_S", 20.0)
    hub.offer = saying(PATH)
    assert set(await offering.ways([entry(FILE)], [BASE])) == {FILE}


async def test_without_a_connection_there_are_no_ways_at_once(broker: Mosquitto) -> None:
    assert await Offering(make_link(broker)).ways([entry(FILE)], []) == {}


async def test_a_refused_question_leaves_no_ways(link: Link, hub: FakeHub) -> None:
    hub.offer = lambda _: Refusal("bad-request", "no")
    assert await Offering(link).ways([entry(FILE)], []) == {}


async def test_a_patch_is_found_by_its_own_digest_and_asked_for_with_its_base(
    link: Link, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "AGAIN_S", 0.0)

    def patched(said: Offers) -> Offered:
        patch = PatchOffer(BASE, PATCH, 7, "/patch", f"patch-grant-{len(hub.asked_offers)}")
        return Offered(tuple(Way(one, PATH, "g", (patch,) if BASE in said.held else ()) for one in said.files), 600.0)

    hub.offer = patched
    offering = Offering(link)
    assert not (await offering.ways([entry(FILE)], []))[FILE].patches
    assert (await offering.ways([entry(FILE)], [BASE]))[FILE].patches[0].sha256 == PATCH
    assert (await offering.url(PATCH), await offering.grant(PATCH)) == ("/patch", "patch-grant-2")
    offering.forget(PATCH)
    assert await offering.grant(PATCH) == "patch-grant-3"
    assert hub.asked_offers[-1] == Offers((FILE,), (BASE,))
