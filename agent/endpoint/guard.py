"""Who may ask: a token on TCP, the user at the other end on a Unix socket. Called by `connection`."""

from __future__ import annotations

import hmac
import socket
import struct

from agent.endpoint.exchange import Guard, Refused

_CREDENTIALS = struct.Struct("iII")  # process, user, group: `struct ucred` of unix(7)
_BEARER = b"Bearer "


def barred(guard: Guard, sock: socket.socket | None) -> Refused | None:
    """Why nobody at the other end of this connection is answered, whatever they show; None where they may be."""
    if not guard.peers or sock is None or sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    if uid in guard.peers:
        return None
    return Refused(403, f"expected one of the users that may use this module, got user {uid}")


def needs_token(guard: Guard, sock: socket.socket | None) -> bool:
    """Whether requests on this connection must show it: not on a Unix socket, which has its file's mode."""
    return bool(guard.token) and (sock is None or sock.family != socket.AF_UNIX)


def missing_token(guard: Guard, target: bytes, authorization: bytes) -> Refused | None:
    """Why this request is not answered, if so."""
    if target in guard.open:
        return None
    shown = authorization[len(_BEARER) :] if authorization[: len(_BEARER)].lower() == _BEARER.lower() else b""
    if shown and hmac.compare_digest(shown.strip(), guard.token):
        return None
    got = "another one" if authorization else "none"
    return Refused(
        401, f"expected this device's token (Authorization: Bearer), got {got}", b"WWW-Authenticate: Bearer\r\n"
    )
