"""What a device says about itself: checked against its key, and compared with what it shall run. Pure.

Called by `devices` (which stores reports) and the API (which shows differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_hub.agents import older
from cloud_hub.desired import CANDIDATE, Assignment
from cloud_hub.errors import Unprocessable
from modules.configuration import config_digest
from modules.errors import ModuleError
from modules.manifest import NEWER_AGENT
from modules.messages import DeviceReport, ModuleReport, SignedReport, decode_report


class Difference(msgspec.Struct, frozen=True):
    """One module that is not as desired. `why`: missing, other-version, other-configuration, not-verified, not-serving
    or not-desired.

    `cause` says in a word, and `text` in a sentence, what keeps the device from it, see `explaining`. With
    other-configuration `desired_config` and `reported_config` are digests, empty for no configuration, and `revision`
    that of the rollout which brings it (0: not known).
    """

    module: str
    why: str
    desired: int | None
    reported: int | None
    candidate: bool = False
    cause: str = ""
    text: str = ""
    desired_config: str = ""
    reported_config: str = ""
    revision: int = 0


class _KnownVersion(msgspec.Struct):
    """The one field of a report that doorbells need."""

    director_version: int


_known = msgspec.json.Decoder(_KnownVersion)


def differences(desired: tuple[Assignment, ...], report: DeviceReport | None) -> list[Difference]:
    """What keeps a device from being as desired; empty when nothing does."""
    reported = {(module.name, module.candidate): module for module in (report.modules if report is not None else ())}
    says = report is not None and not older(report.agent_version, NEWER_AGENT)  # which configurations it has
    found = []
    for assignment in desired:
        beside = assignment.role == CANDIDATE
        module = reported.pop((assignment.module, beside), None)
        if module is None:
            found.append(Difference(assignment.module, "missing", assignment.version, None, beside))
            continue
        if module.version != assignment.version:
            why = "other-version"
        elif says and module.config_sha256 != (wanted := config_digest(assignment.config)):
            found.append(_configured_otherwise(assignment, module, wanted))
            continue
        elif not module.verified:
            why = "not-verified"
        elif (module.state == "off") != (assignment.mode == "off") or module.state == "failed":
            why = "not-serving"
        else:
            continue
        found.append(Difference(assignment.module, why, assignment.version, module.version, beside))
    left = reported.values()
    return found + [Difference(one.name, "not-desired", None, one.version, one.candidate) for one in left]


def _configured_otherwise(assignment: Assignment, module: ModuleReport, wanted: str) -> Difference:
    return Difference(
        assignment.module,
        "other-configuration",
        assignment.version,
        module.version,
        assignment.role == CANDIDATE,
        desired_config=wanted,
        reported_config=module.config_sha256,
    )


def signed_by(certificates: Sequence[str], data: bytes, signature: bytes) -> int:
    """Which of the certificates (PEM) holds the key that has signed; -1 for none. ECDSA, SHA-256, DER."""
    for number, certificate in enumerate(certificates):
        key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            with suppress(InvalidSignature):
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
                return number
    return -1


def verify_report(certificates: Sequence[str], device: str, signed: SignedReport) -> tuple[DeviceReport, int]:
    """The report, after its signature and then its content have been checked, and whose signature it was.

    `certificates` are those that the device may have now, PEM. Raises Unprocessable `report-signature`,
    `report-invalid` or `report-device`.
    """
    signer = signed_by(certificates, signed.body, signed.signature)
    if signer < 0:
        raise Unprocessable(
            "report-signature",
            f"report on the topic of {device}: not signed by the key this device enrolled with; dropped",
            device=device,
        )
    try:
        report = decode_report(signed.body)
    except ModuleError as error:
        raise Unprocessable("report-invalid", f"report of {device}: {error}; dropped", device=device) from error
    if report.device != device:
        raise Unprocessable(
            "report-device",
            f"report on the topic of {device}: expected that device, got {report.device[:63]!r}; dropped",
            device=device,
        )
    return report, signer


def known_version(report: bytes | None) -> int:
    """The director version that a stored report knows; 0 without a report."""
    return 0 if report is None else _known.decode(report).director_version
