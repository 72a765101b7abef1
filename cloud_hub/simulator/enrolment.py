"""Simulated devices come in as real ones do: a claim token for a pattern of ids, a request each, the hub's answer.

Bounded in parallel; the key of each device is made here. Called by `run`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloud_hub.api.route import PREFIX
from cloud_hub.claims import MAX_USES, NewToken
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.errors import HubUnreachable, Refused
from cloud_hub.simulator.fleet import Member, Place
from cloud_hub.simulator.identity import Identity, new_key, request
from cloud_hub.simulator.state import DeviceState
from firmware_profiles.profile import DeviceProfile
from modules.enrolment import EnrollAnswer, EnrollRequest

AT_ONCE = 8
PATIENCE_S = 60.0
BUSY = frozenset({429, 503})
TRIES = 20
LONGEST_WAIT_S = 30.0
TOKEN_LIFE_S = 6 * 3600.0


async def enrol(
    hub: HubClient,
    names: Sequence[str],
    pattern: str,
    hardware: DeviceProfile,
    tags: dict[str, str],
    progress: Callable[[int], None],
) -> tuple[Place, list[Member]]:
    """All of them. Raises Refused, HubUnreachable; those that came in until then stay."""
    found: list[tuple[Identity, EnrollAnswer]] = []
    tls = ssl.create_default_context(cafile=hub.context.ca)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=AT_ONCE), timeout=aiohttp.ClientTimeout(total=PATIENCE_S)
    ) as session:
        for start in range(0, len(names), MAX_USES):
            some = names[start : start + MAX_USES]
            new = NewToken(pattern, hardware.name, tags, life_s=TOKEN_LIFE_S, uses=len(some))
            token = await hub.create_token(new)
            waiting = list(reversed(some))

            async def work(token: str = token, waiting: list[str] = waiting) -> None:
                while waiting:
                    found.append(await _one(session, hub.context.url, token, waiting.pop(), hardware))
                    progress(1)

            async with asyncio.TaskGroup() as group:
                for number in range(AT_ONCE):
                    group.create_task(work(), name=f"enrol-{number}")
    answer = found[0][1]
    place = Place(
        answer.mqtt_host, answer.mqtt_port, answer.server_ca, answer.image_root, answer.director_root, hardware
    )
    by_name = {identity.device: identity for identity, _ in found}
    return place, [Member(by_name[name], DeviceState()) for name in names]


async def _one(
    session: aiohttp.ClientSession, url: str, token: str, device: str, hardware: DeviceProfile
) -> tuple[Identity, EnrollAnswer]:
    """Waits where the hub says that it is asked too much."""
    key = new_key()
    body = msgspec.json.encode(EnrollRequest(token, device, request(device, key), hardware.name))
    status, said = 0, b""
    for attempt in range(TRIES):
        try:
            async with session.post(f"{url}{PREFIX}/enroll", data=body) as response:
                said, status = await response.read(), response.status
                wait_s = float(response.headers.get("Retry-After", attempt + 1))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise HubUnreachable("hub-unreachable", f"{url}: {error}; {device} was not enrolled") from error
        if status in (200, 201):
            answer = msgspec.json.decode(said, type=EnrollAnswer)
            certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
            return Identity(device, certificate.public_bytes(Encoding.DER), key), answer
        if status not in BUSY:
            break
        await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
    raise Refused(status, "enrolment-refused", f"{device}: {said[:300].decode(errors='replace')}")
