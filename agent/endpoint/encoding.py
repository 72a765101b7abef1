"""Bodies that are compressed on the way: gzip and deflate (zlib's format), as clients of Triton may ask for.

Of use over a network, hardly on a device: an answer is compressed only where the client names one encoding and no
other. Called by `resources`.
"""

from __future__ import annotations

import zlib

from agent.endpoint.exchange import Refused, Reply

LEVEL = 1
_WINDOW = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}


def unpacked(body: bytes, encoding: bytes, most: int) -> bytes:
    """At most `most` bytes. Raises Refused."""
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        data = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise Refused(400, f"expected a body encoded by {encoding.decode()}: {error}") from None
    if len(data) > most:
        raise Refused(413, f"expected a body of at most {most} bytes, got more once it was unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(400, f"expected one whole body encoded by {encoding.decode()}, got a part of it or more")
    return data


def packed(reply: Reply, encoding: bytes) -> None:
    """Packs the reply in place."""
    packer = zlib.compressobj(LEVEL, wbits=_WINDOW[encoding])
    data = [packer.compress(part) for part in (reply.body, *reply.blobs)]
    reply.body, reply.blobs = b"".join([*data, packer.flush()]), ()
    reply.headers += b"Content-Encoding: %b\r\n" % encoding
