"""How a device comes in and stays: the claim token that an operator hands over, the requests, the hub's answers.

Pure values. The hub's `claims` makes and checks tokens, its `renewals` gives new certificates for old ones; the agent's
`enrol` and `renew` ask, and keep the answers.

>>> ClaimToken.parse(str(ClaimToken("s" * 43, "0" * 64))).ca_sha256 == "0" * 64
True
"""

from __future__ import annotations

import re

import msgspec

from firmware_profiles.profile import NAME_PATTERN
from modules.bundle import sha256_hex
from modules.errors import ModuleError, TargetError
from modules.targets import check_device_id

MAX_CSR_CHARS = 16_384
MAX_SIGNATURE_BYTES = 128
_TOKEN = re.compile(r"mct1\.([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")


class EnrolmentError(ModuleError, ValueError):
    """A claim token or an enrolment request that does not have the form it must have.

    Also a ValueError, so that msgspec names the field when it meets one while it parses a request.
    """

    key = "enrolment-invalid"


class ClaimToken(msgspec.Struct, frozen=True):
    """`mct1.<secret>.<digest>`: permission to enrol once, and which hub to trust before anything else is known.

    `secret` is 32 random bytes in base64url without padding; `ca_sha256` is the digest (hex) of the hub's server CA
    certificate in DER, so that the first connection can be checked.
    """

    secret: str
    ca_sha256: str

    def __str__(self) -> str:
        return f"mct1.{self.secret}.{self.ca_sha256}"

    @property
    def secret_sha256(self) -> str:
        """What the hub keeps instead of the secret."""
        return sha256_hex(self.secret.encode())

    @classmethod
    def parse(cls, text: str) -> ClaimToken:
        """Raises EnrolmentError; the message never holds the token."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise EnrolmentError("claim token: expected mct1.SECRET.DIGEST as the hub printed it, got something else")
        return cls(match[1], match[2])


class EnrollRequest(msgspec.Struct, frozen=True):
    """POST /api/v1/enroll. `csr` is PEM, its common name the device id; `profile` is the device profile's name."""

    token: str
    device: str
    csr: str
    profile: str

    def __post_init__(self) -> None:
        try:
            check_device_id(self.device)
        except TargetError as error:
            raise EnrolmentError(str(error)) from error
        if not re.fullmatch(NAME_PATTERN, self.profile):
            raise EnrolmentError(f"profile: expected {NAME_PATTERN}, got {self.profile[:80]!r}")
        if len(self.csr) > MAX_CSR_CHARS:
            raise EnrolmentError(f"csr: expected at most {MAX_CSR_CHARS} characters, got {len(self.csr)}")


class EnrollAnswer(msgspec.Struct, frozen=True):
    """What a device keeps: its certificate, the CA of the hub's servers (both PEM), where to connect, whom to trust.

    `image_root` and `director_root` are the JSON text of each repository's 1.root.json. `device_ca` are the authorities
    of the fleet's devices (PEM), by which neighbours know each other; a hub of before 0.2 does not give them.
    """

    device: str
    certificate: str
    server_ca: str
    mqtt_host: str
    mqtt_port: int
    image_root: str
    director_root: str
    device_ca: str = ""


class RenewRequest(msgspec.Struct, frozen=True):
    """A device asks for a certificate of a new key: POST /api/v1/renew, or in a `Renew` over MQTT.

    `csr` is PEM, signed by the new key; `signature` is ECDSA P-256 with SHA-256 (DER) by the key of the certificate
    that the hub knows, over `statement`. There is no time in it: whoever repeats a request gets what is of no use
    without the new key.
    """

    device: str
    csr: str
    signature: bytes

    def __post_init__(self) -> None:
        try:
            check_device_id(self.device)
        except TargetError as error:
            raise EnrolmentError(str(error)) from error
        if len(self.csr) > MAX_CSR_CHARS:
            raise EnrolmentError(f"csr: expected at most {MAX_CSR_CHARS} characters, got {len(self.csr)}")
        if len(self.signature) > MAX_SIGNATURE_BYTES:
            raise EnrolmentError(f"signature: expected at most {MAX_SIGNATURE_BYTES} bytes, got {len(self.signature)}")

    @property
    def statement(self) -> bytes:
        return renewal_statement(self.device, self.csr)


class RenewAnswer(msgspec.Struct, frozen=True):
    """The new certificate, PEM. The old one stays good until the hub has seen the new one in use.

    `device_ca` as in `EnrollAnswer`.
    """

    certificate: str
    device_ca: str = ""


def renewal_statement(device: str, csr: str) -> bytes:
    """What the old key signs. Begins unlike a report, which is JSON: neither passes for the other."""
    return f"mooring renewal 1\n{device}\n{csr}".encode()
