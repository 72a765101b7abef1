"""Certificates for life: renewed with a new key at two thirds of their life, the old one kept until the new connects.

What stands on the disk says how far a renewal has come: a new key in `identity/next/`, then its certificate beside it,
then both in the place of the old ones. Each step is repeated after a power cut without harm. The hub is asked over
MQTT, or over HTTPS when that does not connect, as after the certificate has expired. One unit of the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.backoff import longest_s
from agent.config import AgentConfig, StatePaths
from agent.errors import AgentError, ConfigError, LinkDown, LinkTimeout, RenewalError
from agent.files import write_durably
from agent.https import address, exchange, refusal
from agent.identity import (
    Credentials,
    Identity,
    common_name,
    forget_next,
    keep_next,
    key_pem,
    make_csr,
    make_key,
    pinned_tls,
)
from agent.link import Link
from agent.neighbours import keep_device_ca
from modules.enrolment import RenewAnswer, RenewRequest, renewal_statement
from modules.errors import MALFORMED

JITTER = 0.1  # of its life: a fleet that enrolled together does not renew together
CHECK_S = 60.0  # the clock may be set meanwhile
POLL_S = 0.05
PATH = "/api/v1/renew"
# Refusals that an operator has to end; nobody waits for them with bated breath.
LASTING = frozenset({"certificate-expired", "device-retired", "renewal-signature"})
Moment = Literal["key", "certificate", "connected", "swapping", "swapped"]

_log = logging.getLogger(__name__)


def due(identity: Identity, at: float) -> datetime:
    """When to renew: `at` this part of its life. The same at every start, and spread over a tenth of it for many."""
    life = identity.not_after - identity.not_before
    spread = (identity.serial % 1024 / 1024 - 0.5) * JITTER
    return identity.not_before + life * (at + spread)


class Renewal:
    """`changed` is called when a new identity is in use: the hub is to hear of it. `crash_at` as in `update.engine`."""

    def __init__(
        self,
        config: AgentConfig,
        paths: StatePaths,
        credentials: Credentials,
        link: Link,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
        crash_at: str = "",
    ) -> None:
        self._config, self._limits = config, config.renewal
        self._paths, self._credentials, self._link = paths, credentials, link
        self._changed, self._clock, self._crash_at = changed, clock, crash_at
        self._rejected = 0

    async def run(self) -> None:
        """Waits and renews, until cancelled."""
        failures = 0
        while True:
            left = due(self._credentials.current, self._limits.due_at).timestamp() - self._clock()
            if left > 0:
                await asyncio.sleep(min(left, CHECK_S))
                continue
            try:
                await self.renew()
                failures = 0
            except (AgentError, OSError) as error:
                failures += 1
                self._say(error, failures)
                await asyncio.sleep(self._pause(failures, error))

    async def renew(self) -> None:
        """One renewal, from wherever the last one was left. Raises RenewalError, ConfigError, LinkError, OSError."""
        fresh = Identity.load_next(self._paths)
        if fresh is None or fresh.not_after.timestamp() <= self._clock():
            fresh = await self._fetch(self._next_key())
        self._crash("certificate")
        await self._connect(fresh)
        self._crash("connected")
        self._credentials.current = keep_next(self._paths, lambda: self._crash("swapping"))
        self._credentials.trial = None
        self._rejected = 0
        _log.info("certificate renewed: until=%s", self._credentials.current.not_after.isoformat())
        self._crash("swapped")
        self._changed()

    def _next_key(self) -> ec.EllipticCurvePrivateKey:
        """The key for which a certificate was asked before, or a new one, on the disk before anybody hears of it."""
        try:
            key = serialization.load_pem_private_key(self._paths.next_key.read_bytes(), password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return key
        except (FileNotFoundError, ValueError, TypeError):
            pass
        self._paths.next.mkdir(mode=0o700, exist_ok=True)
        forget_next(self._paths)
        fresh = make_key()
        write_durably(self._paths.next_key, key_pem(fresh))
        self._crash("key")
        return fresh

    async def _fetch(self, key: ec.EllipticCurvePrivateKey) -> Identity:
        device = self._credentials.device
        csr = make_csr(key, device)
        request = RenewRequest(device, csr, self._credentials.sign(renewal_statement(device, csr)))
        answer = await self._ask(request)
        certificate = answer.certificate
        self._check(certificate, key)
        keep_device_ca(self._paths, answer.device_ca)
        write_durably(self._paths.next_certificate, certificate.encode())
        return Identity.read(self._paths, self._paths.next_certificate, self._paths.next_key)

    async def _ask(self, request: RenewRequest) -> RenewAnswer:
        """Over the connection there is; without one, or without an answer, over HTTPS."""
        if await self._connected(0.0 if self._expired() else self._limits.offline_s):
            try:
                return await self._link.renew(request)
            except (LinkDown, LinkTimeout) as error:
                _log.info("no answer over MQTT, asking over HTTPS: %s", error)
        return await asyncio.to_thread(self._ask_https, request)

    def _ask_https(self, request: RenewRequest) -> RenewAnswer:
        host, port = address(RenewalError, self._config.hub)
        context = pinned_tls(self._paths.server_ca.read_text())
        status, body = exchange(RenewalError, host, port, context, "POST", PATH, msgspec.json.encode(request))
        if status not in (200, 201):
            raise refusal(RenewalError, host, status, body)
        try:
            return msgspec.json.decode(body, type=RenewAnswer)
        except MALFORMED as error:
            raise RenewalError(f"{host}: expected a certificate, got something else: {error}", "bad-answer") from error

    def _check(self, pem: str, key: ec.EllipticCurvePrivateKey) -> None:
        """Is it for this device and the new key, and good now? Raises RenewalError (bad-answer)."""
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            named = common_name(certificate)
        except (ValueError, ConfigError) as error:
            raise RenewalError(f"hub's answer: {error}; the old certificate stays", "bad-answer") from error
        checks = (
            ("name", self._credentials.device, named),
            ("key is this device's new one", True, certificate.public_key() == key.public_key()),
            ("is valid for a while", True, certificate.not_valid_after_utc.timestamp() > self._clock()),
        )
        for what, expected, got in checks:
            if got != expected:
                text = f"hub's answer, certificate's {what}: expected {expected}, got {str(got)[:80]}"
                raise RenewalError(f"{text}; the old certificate stays", "bad-answer")

    async def _connect(self, fresh: Identity) -> None:
        """Returns once the broker has let the new certificate in. Raises RenewalError (not-accepted)."""
        self._credentials.trial = fresh
        self._link.reconnect()
        if await self._until(lambda: self._link.connected.is_set() and self._credentials.shown is fresh):
            return
        if not self._expired():
            self._credentials.trial = None
            self._link.reconnect()
            if await self._until(lambda: self._link.connected.is_set() and self._credentials.shown is not fresh):
                self._rejected += 1
                if self._rejected >= self._limits.rejections:
                    self._rejected = 0
                    forget_next(self._paths)
        text = f"the new certificate did not connect within {self._limits.connect_s:g} s"
        raise RenewalError(f"{text}; the old one stays", "not-accepted")

    async def _until(self, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + self._limits.connect_s
        while not condition():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _connected(self, patience_s: float) -> bool:
        try:
            async with asyncio.timeout(patience_s):
                await self._link.connected.wait()
        except TimeoutError:
            return False
        return True

    def _expired(self) -> bool:
        return self._credentials.current.not_after <= datetime.fromtimestamp(self._clock(), UTC)

    def _pause(self, failures: int, error: Exception) -> float:
        """Full jitter, but never at once."""
        limits = self._limits
        if isinstance(error, AgentError) and error.key in LASTING:
            return limits.retry_ceiling_s * random.uniform(0.5, 1.0)
        return longest_s(limits.retry_first_s, limits.retry_ceiling_s, failures) * random.uniform(0.5, 1.0)

    def _say(self, error: Exception, failures: int) -> None:
        """Once when it begins to fail, and again when that becomes serious."""
        serious = self._expired()
        if failures == 1 or (serious and failures % 10 == 0):
            level = logging.ERROR if serious else logging.WARNING
            until = self._credentials.current.not_after.isoformat()
            _log.log(level, "certificate not renewed, trying again: until=%s why=%s", until, error)

    def _crash(self, moment: Moment) -> None:
        if self._crash_at == f"renewal:{moment}":
            os.kill(os.getpid(), signal.SIGKILL)
