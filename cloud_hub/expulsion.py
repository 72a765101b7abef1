"""Throws a device out, and proves that it is out: `mooring device revoke`.

The broker checks certificates only when a connection is made, and a connection that stands goes on. So the device's
certificates go on the list together with one that was made for this purpose; once the broker refuses that one, the list
is in force. Then the hub takes the device's place at the broker, as its name and with a certificate of a few minutes:
the broker ends the session that stands, and forgets what waited for it. See docs/decisions/0018-revocation.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Final

import aiomqtt
import msgspec

from cloud_hub.broker import hub_address
from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.devices import Devices
from cloud_hub.errors import Conflict, HubError
from cloud_hub.link import HubLink
from cloud_hub.revocations import Revocations
from cloud_hub.trust.ca import CertificateAuthority, Identity, Revoked
from cloud_hub.trust.director import Director
from cloud_hub.trust.director_sign import TIMESTAMP_FILE

IN_FORCE_S: Final = 10.0  # until the broker has read the list
ANSWER_S: Final = 5.0
SILENCE_S: Final = 0.3  # a connection that the broker refuses does not live so long
POLL_S: Final = 0.1


class Step(msgspec.Struct, frozen=True):
    """One of the four, whether it is proven, and what was seen."""

    name: str
    done: bool
    text: str


class Expelled(msgspec.Struct, frozen=True):
    """`out` when every step is proven. Asking again repeats those that may be repeated."""

    device: str
    out: bool
    steps: tuple[Step, ...]


class Expulsion:
    """One device at a time, because each has the broker read its list."""

    def __init__(
        self,
        config: HubConfig,
        paths: HubPaths,
        ca: CertificateAuthority,
        devices: Devices,
        director: Director,
        revocations: Revocations,
        link: HubLink,
        clock: Clock,
    ) -> None:
        self._address = hub_address(config)
        self._external = config.broker
        self._paths, self._ca, self._devices, self._director = paths, ca, devices, director
        self._revocations, self._link, self._clock = revocations, link, clock
        self._one = asyncio.Lock()

    async def expel(self, device: str, actor: str) -> Expelled:
        """Raises NotFound `device-not-found`. What cannot be done or proven is told in its step."""
        async with self._one:
            await self._devices.shut_out(device, actor, "device.revoked")
            steps = (
                await _step("renewal blocked", self._renewal_blocked(device)),
                await _step("certificate refused", self._certificate_refused(device)),
                await _step("session ended", self._session_ended(device)),
                await _step("directing stopped", self._directing_stopped(device)),
            )
        return Expelled(device, all(step.done for step in steps), steps)

    async def _renewal_blocked(self, device: str) -> str:
        known = await self._devices.get(device)
        if known.retired_at is None:
            raise _NotProven("the hub still gives it certificates")
        return "the hub gives it no certificate, and takes none of its reports"

    async def _certificate_refused(self, device: str) -> str:
        probe = self._ca.issue_probe(device, self._clock())
        count = await self._revocations.publish([Revoked(probe.certificate.serial_number, self._clock())])
        began = time.monotonic()
        with self._context(probe) as context:
            while not await self._refuses(context):
                if time.monotonic() - began > IN_FORCE_S:
                    hint = f": have {self._external} read {self._paths.crl} anew" if self._external else ""
                    raise _NotProven(f"the broker still accepts a certificate of the list after {IN_FORCE_S:g} s{hint}")
                await asyncio.sleep(POLL_S)
        seconds = time.monotonic() - began
        return f"the broker refuses the {count} certificates of the list, seen {seconds:.1f} s after it was written"

    async def _session_ended(self, device: str) -> str:
        """Connecting with the device's name ends the session of whoever has it, and its queue with it."""
        with self._context(self._ca.issue_probe(device, self._clock())) as context:
            try:
                async with aiomqtt.Client(
                    self._address.host,
                    self._address.port,
                    identifier=device,
                    protocol=aiomqtt.ProtocolVersion.V5,
                    clean_start=True,
                    tls_context=context,
                    timeout=ANSWER_S,
                ):
                    pass
            except aiomqtt.MqttError as error:
                raise _NotProven(f"the broker did not let the hub take its place: {error}") from error
        await self._link.forget(device)
        return "the hub took its place at the broker and left: no session, nothing queued, nothing retained"

    async def _directing_stopped(self, device: str) -> str:
        try:
            await self._director.metadata(device, TIMESTAMP_FILE)
        except Conflict:
            return "the director signs nothing for it"
        raise _NotProven("the director still signs for it")

    async def _refuses(self, context: ssl.SSLContext) -> bool:
        """With TLS 1.3 a client learns only after its handshake that its certificate is not accepted."""
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_connection(self._address.host, self._address.port, ssl=context)
            async with asyncio.timeout(SILENCE_S):
                return await reader.read(1) == b""
        except ssl.SSLError:
            return True
        except TimeoutError:
            return False
        except ConnectionRefusedError as error:
            raise _NotProven(f"the broker cannot be reached: {error.strerror}") from error
        except OSError:
            return writer is not None
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(writer.wait_closed(), 1.0)

    @contextlib.contextmanager
    def _context(self, probe: Identity) -> Iterator[ssl.SSLContext]:
        """TLS with the probe's certificate. Its files are gone before anything is sent."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self._paths.server_ca_crt)
        with tempfile.TemporaryDirectory(dir=self._paths.ca, prefix=".probe-") as folder:
            certificate, key = Path(folder) / "probe.crt", Path(folder) / "probe.key"
            probe.write(certificate, key)
            context.load_cert_chain(certificate, key)
        yield context


class _NotProven(Exception):
    """A step that was not done, or could not be seen to be done."""


async def _step(name: str, work: Awaitable[str]) -> Step:
    try:
        return Step(name, True, await work)
    except _NotProven as error:
        return Step(name, False, str(error))
    except HubError as error:
        return Step(name, False, error.message)
    except (OSError, aiomqtt.MqttError) as error:
        return Step(name, False, f"{type(error).__name__}: {error}")
