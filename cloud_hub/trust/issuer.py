"""Who signs the devices' certificates: the hub's own authority, or the operator's, by a command.

What a command prints is believed no further than it was asked for: name, key, lifetime and use are checked, and that
the authority which is configured has signed. Called by `devices` (enrolment), `renewals` and `revocations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_hub.ca_settings import CaSettings
from cloud_hub.errors import Unavailable
from cloud_hub.trust.ca import BACKDATE, CertificateAuthority, check_request
from modules.targets import check_device_id

MAX_OUTPUT_BYTES = 16 * 1024 * 1024  # a revocation list of some hundred thousand entries
MAX_WORDS = 300
CRL_KEYS = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)

_log = logging.getLogger(__name__)


class Issuer:
    """Certificates for devices, by whoever is configured to sign them."""

    def __init__(self, ca: CertificateAuthority, settings: CaSettings, life: timedelta) -> None:
        self._ca = ca
        self._settings = settings
        self.life = life

    @property
    def external(self) -> bool:
        return bool(self._settings.command)

    @property
    def authorities(self) -> str:
        """Who may have signed the certificate of a device of this fleet (PEM), those of now first."""
        own = self._ca.device_ca.public_bytes(Encoding.PEM).decode()
        return (Path(self._settings.certificate).read_text() + "\n" if self.external else "") + own

    async def issue(self, csr_pem: str, device: str, now: float) -> str:
        """A client certificate (PEM) for `device`.

        Raises Unprocessable `csr-invalid`; with a command also Unavailable `ca-unavailable` when it fails and
        `ca-answer` when it does not give what was asked for.
        """
        key = check_request(csr_pem, check_device_id(device))
        if not self.external:
            return self._ca.issue_device(csr_pem, device, now)
        printed = await self._run((*self._settings.command, device), csr_pem.encode(), f"certificate of {device}")
        try:
            certificate = x509.load_pem_x509_certificate(printed)
        except ValueError as error:
            raise _wrong(device, "expected a certificate in PEM, got something else") from error
        self._check(certificate, device, key, datetime.fromtimestamp(now, UTC))
        return printed.decode("ascii", "replace")

    async def crl(self, serials: Iterable[int], now: float) -> bytes:
        """The revocation list (PEM) of the operator's authority, which holds these. Empty without one.

        Raises Unavailable `ca-unavailable` or `ca-answer`.
        """
        if not self.external:
            return b""
        wanted = frozenset(serials)
        asked = "".join(f"{serial:x}\n" for serial in sorted(wanted)).encode()
        printed = await self._run(self._settings.crl_command, asked, "revocation list")
        try:
            crl = x509.load_pem_x509_crl(printed)
        except ValueError as error:
            raise _wrong("the fleet", "expected a revocation list in PEM, got something else") from error
        self._check_crl(crl, wanted, now)
        return printed

    def _check(self, certificate: x509.Certificate, device: str, key: ec.EllipticCurvePublicKey, now: datetime) -> None:
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        longest = self.life + BACKDATE
        left = certificate.not_valid_after_utc - now
        checks = (
            ("the common name", [device], names),
            ("the key of the request", True, certificate.public_key() == key),
            ("a certificate that is no authority", False, _is_authority(certificate)),
            ("the use client authentication", True, _is_client(certificate)),
            (f"an end within {longest} from now", True, timedelta(0) < left <= longest),
            (f"the signature of {self._settings.certificate}", True, self._has_signed(certificate)),
        )
        for what, expected, got in checks:
            if got != expected:
                raise _wrong(device, f"expected {what}: {expected}, got {str(got)[:80]}")

    def _check_crl(self, crl: x509.CertificateRevocationList, wanted: frozenset[int], now: float) -> None:
        key = self._authority().public_key()
        ends = crl.next_update_utc
        signed = isinstance(key, CRL_KEYS) and crl.is_signature_valid(key)
        if not signed:
            raise _wrong("the fleet", f"expected a list signed by {self._settings.certificate}")
        if ends is None or ends.timestamp() <= now:
            raise _wrong("the fleet", f"expected a list that is valid now, got one until {ends}")
        missing = [serial for serial in wanted if crl.get_revoked_certificate_by_serial_number(serial) is None]
        if missing:
            raise _wrong("the fleet", f"expected the list to hold {missing[0]:x} and {len(missing) - 1} more")

    def _authority(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(Path(self._settings.certificate).read_bytes())

    def _has_signed(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._authority())
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    async def _run(self, command: Sequence[str], given: bytes, what: str) -> bytes:
        """What the command prints, bounded in time and size. What it says on standard error goes to the log."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise _unavailable(what, f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                printed, said = await process.communicate(given)
        except TimeoutError as error:
            raise _unavailable(what, f"{command[0]} did not end within {self._settings.timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            _log.warning("%s: %s said: %s", what, command[0], said.decode(errors="replace")[-MAX_WORDS:])
            raise _unavailable(what, f"{command[0]} ended with status {process.returncode} (see the hub's log)")
        if len(printed) > MAX_OUTPUT_BYTES:
            raise _unavailable(what, f"{command[0]} printed more than {MAX_OUTPUT_BYTES} bytes")
        return printed


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _is_client(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _unavailable(what: str, why: str) -> Unavailable:
    return Unavailable("ca-unavailable", f"{what}: {why}; nothing was issued, try again")


def _wrong(device: str, why: str) -> Unavailable:
    return Unavailable("ca-answer", f"the signing command's answer for {device}: {why}; nothing was issued")
