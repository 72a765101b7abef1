"""What commands brought: whole blobs beside those of samples, unpacked for whoever asks. Called by `api.commands`."""

from __future__ import annotations

import asyncio
from typing import Final

from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.pieces import SampleBlobs
from cloud_hub.asking.wanted import MAX_BROUGHT_BYTES
from cloud_hub.errors import NotFound, Unprocessable
from modules.errors import MessageError
from modules.packed import unpack

MARGIN: Final = 4096


async def brought(command: AskedCommand, blobs: SampleBlobs) -> bytes:
    """Raises NotFound `command-without-result` or `blob-not-found` (it is still on its way, or has been removed),
    Unprocessable `result-invalid`.
    """
    if not command.result_sha256:
        text = f"command {command.id} has brought nothing: {command.state} {command.text}".strip()
        raise NotFound("command-without-result", text, id=command.id, state=command.state)
    packed = await blobs.read(command.result_sha256)
    try:
        return await asyncio.to_thread(unpack, packed, MAX_BROUGHT_BYTES + MARGIN)
    except MessageError as error:
        text = f"command {command.id}: what device {command.device} sent cannot be read: {error}"
        raise Unprocessable("result-invalid", text, id=command.id) from error
