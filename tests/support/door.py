"""Whether a broker lets a client in: a CONNECT by hand, because only its answer tells."""

from __future__ import annotations

import asyncio
import ssl

_CONNECT = bytes([0x10, 13, 0, 4]) + b"MQTT" + bytes([5, 2, 0, 60, 0, 0, 0])
_CONNACK = 0x20
DEADLINE_S = 5.0


async def is_let_in(port: int, tls: ssl.SSLContext) -> bool:
    """Connects to localhost. With TLS 1.3 a refused certificate shows only after the handshake."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
            writer.write(_CONNECT)
            answer = await reader.read(4)
            writer.close()
            return len(answer) == 4 and answer[0] == _CONNACK and answer[3] == 0
    except (ssl.SSLError, OSError):
        return False
