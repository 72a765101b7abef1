"""Enrolment over real HTTPS: a token becomes an identity, and everything that is not right is refused by its name."""

from __future__ import annotations

import fcntl
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.config import AgentConfig, StatePaths
from agent.enrol import enrol
from agent.errors import ConfigError, EnrolError
from agent.identity import Identity
from agent.status import LOCK_FILE
from modules.enrolment import ClaimToken, EnrollAnswer, EnrollRequest
from support.certificates import Pair, certify, make_ca, make_server
from support.repository import World

REFUSED = b'{"error": {"key": "token-used", "message": "the token has been used", "fields": {}}}'


class Hub:
    """The other party: answers two paths over TLS. A test changes what it says."""

    def __init__(self, folder: Path) -> None:
        self.server_ca, self.device_ca = make_ca("hub server CA"), make_ca("hub device CA")
        self.shown_ca: str | bytes = self.server_ca.pem
        self.world = World()
        self.requests: list[EnrollRequest] = []
        self.spoil: Callable[[EnrollAnswer], EnrollAnswer | tuple[int, bytes]] = lambda answer: answer
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*make_server(self.server_ca, "localhost").write(folder, "hub"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_address[1]}"

    @property
    def token(self) -> str:
        der = self.server_ca.certificate.public_bytes(serialization.Encoding.DER)
        return str(ClaimToken("s" * 43, hashlib.sha256(der).hexdigest()))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: EnrollRequest) -> EnrollAnswer | tuple[int, bytes]:
        self.requests.append(request)
        public = x509.load_pem_x509_csr(request.csr.encode()).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        pem = Pair(self.device_ca.key, certify(self.device_ca, request.device, public)).pem
        roots = {name: data.decode() for name, data in self.world.roots.items()}
        return self.spoil(
            EnrollAnswer(
                request.device, pem, self.server_ca.pem, "broker.local", 8883, roots["image"], roots["director"]
            )
        )

    def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/v1/ca"
                shown = hub.shown_ca
                self._send(200, shown if isinstance(shown, bytes) else shown.encode())

            def do_POST(self) -> None:
                assert self.path == "/api/v1/enroll"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = hub.answer(msgspec.json.decode(body, type=EnrollRequest))
                status, data = answer if isinstance(answer, tuple) else (200, msgspec.json.encode(answer))
                self._send(status, data)

            def _send(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Silent: tests read the outcome, not the log."""

        return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path / "device")


async def refused(paths: StatePaths, hub: Hub, key: str, match: str, token: str = "", url: str = "") -> None:
    before = sorted(paths.root.rglob("*"))
    with pytest.raises(EnrolError, match=match) as caught:
        await enrol(paths, url or hub.url, token or hub.token, device="cam-17", profile="generic-x86_64")
    assert caught.value.key == key, caught.value
    assert sorted(paths.root.rglob("*")) == before
    assert hub.token.split(".")[1] not in str(caught.value)


async def test_a_token_becomes_an_identity(hub: Hub, paths: StatePaths) -> None:
    config = await enrol(paths, hub.url, hub.token, device="cam-17", profile="raspberry-pi-4")
    assert AgentConfig.load(paths) == config
    assert (config.device, config.mqtt_host, config.mqtt_port) == ("cam-17", "broker.local", 8883)
    assert config.profile.name == "raspberry-pi-4"
    identity = Identity.load(paths)
    assert identity.device == "cam-17"
    assert (paths.roots / "director.root.json").read_bytes() == hub.world.roots["director"]
    assert paths.key.stat().st_mode & 0o777 == 0o600
    assert paths.identity.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in paths.root.iterdir() if path.name.startswith(".")] == []
    assert identity.tls().minimum_version is ssl.TLSVersion.TLSv1_3


async def test_what_the_device_signs_the_certificate_verifies(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    signature = Identity.load(paths).sign(b"report")
    public = x509.load_pem_x509_certificate(paths.certificate.read_bytes()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"report", ec.ECDSA(hashes.SHA256()))


async def test_the_key_is_new_and_the_request_names_only_the_device(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    csr = x509.load_pem_x509_csr(hub.requests[0].csr.encode())
    assert csr.subject.rfc4514_string() == "CN=cam-17"
    assert list(csr.extensions) == []


async def test_name_and_profile_are_found_when_not_given(hub: Hub, paths: StatePaths) -> None:
    config = await enrol(paths, hub.url, hub.token)
    assert config.device == hub.requests[0].device
    assert config.profile.name == hub.requests[0].profile


async def test_an_enrolled_device_stays_as_it_is(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    key = paths.key.read_bytes()
    await refused(paths, hub, "already-enrolled", "enrolled already; nothing was changed")
    assert (paths.key.read_bytes(), len(hub.requests)) == (key, 1)


async def test_replacing_makes_a_new_key_and_keeps_what_is_known(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    key = paths.key.read_bytes()
    paths.database.write_bytes(b"what is known")
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64", replace=True)
    assert paths.key.read_bytes() != key
    assert paths.database.exists()


async def test_replacing_under_a_running_agent_is_refused(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    with (paths.root / LOCK_FILE).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EnrolError, match="stop it first") as caught:
            await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64", replace=True)
    assert (caught.value.key, len(hub.requests)) == ("agent-running", 1)


async def test_a_key_that_a_power_cut_left_behind_is_removed(hub: Hub, paths: StatePaths) -> None:
    left = paths.root / ".enrol-0badc0de" / "identity" / "device.key"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of an enrolment that never ended")
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    assert list(paths.root.glob(".enrol-*")) == []


async def test_another_hub_forgets_what_the_old_one_said(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    paths.database.write_bytes(b"what was known")
    paths.metadata.mkdir()
    hub.world = World()
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64", replace=True)
    assert not paths.database.exists()
    assert not paths.metadata.exists()


@pytest.mark.parametrize("token", ["mct1.short.00", "nonsense", "mct2." + "s" * 43 + "." + "0" * 64])
async def test_a_token_that_is_none(hub: Hub, paths: StatePaths, token: str) -> None:
    await refused(paths, hub, "bad-token", "expected mct1.SECRET.DIGEST", token)


async def test_a_hub_with_another_ca_than_the_token_names_hears_nothing(hub: Hub, paths: StatePaths) -> None:
    token = str(ClaimToken("s" * 43, "0" * 64))
    await refused(paths, hub, "ca-mismatch", "another hub, or somebody in between", token)
    assert hub.requests == []


async def test_a_server_that_shows_the_right_ca_but_is_not_of_it_hears_nothing(hub: Hub, paths: StatePaths) -> None:
    real = make_ca("the real hub")
    hub.shown_ca = real.pem
    der = real.certificate.public_bytes(serialization.Encoding.DER)
    token = str(ClaimToken("s" * 43, hashlib.sha256(der).hexdigest()))
    await refused(paths, hub, "ca-mismatch", "its certificate is not the hub's", token)
    assert hub.requests == []


@pytest.mark.parametrize("shown", [b"", b"hello", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nx"])
async def test_a_ca_that_is_none(hub: Hub, paths: StatePaths, shown: bytes) -> None:
    hub.shown_ca = shown
    await refused(paths, hub, "bad-answer", "expected the hub's CA as PEM")


async def test_the_hubs_refusal_comes_out_with_its_key_and_words(hub: Hub, paths: StatePaths) -> None:
    hub.spoil = lambda answer: (401, REFUSED)
    await refused(paths, hub, "token-used", "the hub refused: the token has been used")


async def test_a_refusal_without_words(hub: Hub, paths: StatePaths) -> None:
    hub.spoil = lambda answer: (502, b"<html>")
    await refused(paths, hub, "refused", "status 502")


async def test_nobody_at_the_address(hub: Hub, paths: StatePaths) -> None:
    await refused(paths, hub, "unreachable", "cannot be reached", url="https://localhost:1")


@pytest.mark.parametrize("url", ["http://localhost", "localhost:8443", "https://", "https://localhost:eighty"])
async def test_an_address_that_is_none(hub: Hub, paths: StatePaths, url: str) -> None:
    await refused(paths, hub, "bad-address", "hub address", url=url)


async def test_an_id_that_no_certificate_may_hold(hub: Hub, paths: StatePaths) -> None:
    with pytest.raises(EnrolError, match="name this device otherwise") as caught:
        await enrol(paths, hub.url, hub.token, device="Cam/17", profile="generic-x86_64")
    assert caught.value.key == "bad-device-id"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": "cam-18"}, "device: expected cam-17, got cam-18"),
        ({"certificate": make_ca("cam-17").pem}, "certificate of this device's key"),
        ({"certificate": make_ca("cam-18").pem}, "certificate name: expected cam-17, got cam-18"),
        ({"certificate": "none"}, "nothing was written"),
        ({"server_ca": make_ca("other").pem}, "server CA"),
        ({"image_root": "{}"}, "image root: expected root, got no metadata"),
        ({"director_root": '{"signed": {"_type": "targets"}}'}, "director root: expected root, got targets"),
    ],
)
async def test_an_answer_that_is_not_for_this_device(
    hub: Hub, paths: StatePaths, change: dict[str, str], match: str
) -> None:
    hub.spoil = lambda answer: msgspec.structs.replace(answer, **change)
    await refused(paths, hub, "bad-answer", match)


async def test_an_answer_that_never_ends(hub: Hub, paths: StatePaths) -> None:
    hub.spoil = lambda answer: (200, b"x" * 3_000_000)
    await refused(paths, hub, "bad-answer", "expected at most")


def test_a_device_that_is_not_enrolled_has_no_identity(paths: StatePaths) -> None:
    with pytest.raises(ConfigError, match="not enrolled") as caught:
        Identity.load(paths)
    assert caught.value.key == "not-enrolled"


async def test_a_certificate_of_another_key_is_refused(hub: Hub, paths: StatePaths) -> None:
    await enrol(paths, hub.url, hub.token, device="cam-17", profile="generic-x86_64")
    make_ca("other").write(paths.identity, "device")
    paths.certificate.write_text(make_ca("another").pem)
    with pytest.raises(ConfigError, match="got one of another key"):
        Identity.load(paths)
