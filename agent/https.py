"""One HTTPS request to the hub, on a connection of its own: for a device that has no certificate, or none that is good.

Nothing of the system's trust is used: the caller gives the TLS context. Called by `enrol` and `renew`, whose errors it
raises.
"""

from __future__ import annotations

import ssl
from http.client import HTTPException, HTTPSConnection
from urllib.parse import urlsplit

import msgspec

from agent.errors import AgentError
from modules.errors import MALFORMED

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 1024 * 1024
DEFAULT_PORT = 8443


class _ErrorText(msgspec.Struct):
    key: str
    message: str


class _ErrorBody(msgspec.Struct):
    error: _ErrorText


def address(kind: type[AgentError], hub: str) -> tuple[str, int]:
    """Host and port of https://HOST:PORT. Raises `kind` (bad-address)."""
    try:
        parts = urlsplit(hub)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise kind(f"hub address {hub[:200]!r}: {error}", "bad-address") from error
    if parts.scheme != "https" or not host:
        raise kind(f"hub address: expected https://HOST:PORT, got {hub[:200]!r}", "bad-address")
    return host, port


def exchange(
    kind: type[AgentError], host: str, port: int, context: ssl.SSLContext, method: str, path: str, body: bytes | None
) -> tuple[int, bytes]:
    """Status and body of the answer. Blocks, for TIMEOUT_S. Raises `kind` (ca-mismatch, unreachable, bad-answer)."""
    connection = HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        headers = {"Accept": "application/json, */*"} | ({"Content-Type": "application/json"} if body else {})
        connection.request(method, path, body, headers)
        with connection.getresponse() as answer:
            data = answer.read(MAX_ANSWER_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        text = f"{host}:{port}: its certificate is not the hub's: {error.verify_message}; nothing was sent"
        raise kind(text, "ca-mismatch") from error
    except (OSError, HTTPException) as error:
        raise kind(f"{host}:{port}: the hub cannot be reached: {error}; try again", "unreachable") from error
    finally:
        connection.close()
    if len(data) > MAX_ANSWER_BYTES:
        raise kind(f"{host}: expected at most {MAX_ANSWER_BYTES} bytes, got more", "bad-answer")
    return answer.status, data


def refusal(kind: type[AgentError], host: str, status: int, body: bytes) -> AgentError:
    """The hub's own key and words where it gave some."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).error
    except MALFORMED:
        return kind(f"{host}: the hub answered with status {status}; nothing was written", "refused")
    return kind(f"the hub refused: {said.message}", said.key)
