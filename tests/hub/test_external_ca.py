"""The operator's own authority, by a command around the real openssl: what it may say, and what is believed."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from cloud_hub.broker import Broker
from cloud_hub.ca_settings import CaSettings
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unavailable, Unprocessable
from cloud_hub.trust import setup
from cloud_hub.trust.issuer import Issuer
from support.clock import SetClock
from support.devices import make_request
from support.door import is_let_in
from support.trust import OPERATOR, free_port, trust_world
from support.waiting import until_async

SIGN = """#!/bin/sh
# Signs the request on standard input for the device that is named last. What an operator would write around openssl.
set -e
cd {folder}
cat > "request.$$"
printf 'basicConstraints=critical,CA:{is_ca}\\nextendedKeyUsage={usage}\\n' > "ext.$$"
openssl x509 -req -in "request.$$" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days {days} \
  -extfile "ext.$$" {more} 2> "errors.$$" || {{ cat "errors.$$" >&2; exit 1; }}
"""
REVOKE = """#!/bin/sh
# Prints a list of the serial numbers on standard input, as `openssl ca` makes it from its index.
set -e
cd {folder}
: > index.txt
while read -r serial; do
  [ $(( ${{#serial}} % 2 )) -eq 0 ] || serial="0$serial"
  number=$(printf '%s' "$serial" | tr a-f A-F)
  printf 'R\\t491231235959Z\\t240101000000Z\\t%s\\tunknown\\t/CN=gone\\n' "$number" >> index.txt
done
printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index.txt\\ndefault_md=sha256\\ndefault_crl_days=30\\n' > crl.cnf
openssl ca -config crl.cnf -gencrl -keyfile ca.key -cert ca.crt
"""


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Callable[..., CaSettings]:
    """An authority made by openssl in a folder of its own, and the two commands around it."""
    folder = tmp_path / "authority"
    folder.mkdir()
    subject = ("-subj", "/CN=Plant CA", "-days", "3650", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key")
    openssl(folder, "req", "-x509", "-new", "-key", "ca.key", "-out", "ca.crt", *subject)

    def settings(**changed: str) -> CaSettings:
        values = {"folder": str(folder), "is_ca": "FALSE", "usage": "clientAuth", "days": "7", "more": ""} | changed
        for name, text in (("sign", SIGN), ("revoke", REVOKE)):
            (folder / name).write_text(text.format(**values))
            (folder / name).chmod(0o700)
        sign, revoke = str(folder / "sign"), str(folder / "revoke")
        return CaSettings((sign, "--device"), (revoke,), str(folder / "ca.crt"), timeout_s=5.0)

    return settings


@pytest.fixture
def issuer(hub_paths: HubPaths, authority: Callable[..., CaSettings]) -> Callable[..., Issuer]:
    setup.create_certificates(hub_paths, HubConfig(), time.time())

    def make(**changed: str) -> Issuer:
        return Issuer(setup.load_authority(hub_paths), authority(**changed), timedelta(days=30))

    return make


async def test_the_command_s_certificate_is_given_to_the_device(issuer: Callable[..., Issuer]) -> None:
    certificate = x509.load_pem_x509_certificate(
        (await issuer().issue(make_request("cam-1"), "cam-1", time.time())).encode()
    )
    assert certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "Plant CA"
    assert [name.value for name in certificate.subject] == ["cam-1"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"is_ca": "TRUE"}, "a certificate that is no authority"),
        ({"usage": "serverAuth"}, "the use client authentication"),
        ({"days": "400"}, "an end within 31 days"),
        ({"more": "-subj /CN=_hub"}, "the common name"),
        ({"more": "-noout"}, "expected a certificate in PEM"),
        ({"more": "-force_pubkey ca.pub"}, "the key of the request"),
    ],
    ids=["authority", "server", "long", "other-name", "nothing", "other-key"],
)
async def test_what_the_command_says_beyond_what_was_asked_is_refused(
    issuer: Callable[..., Issuer], tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    openssl(tmp_path / "authority", "ec", "-in", "ca.key", "-pubout", "-out", "ca.pub")
    with pytest.raises(Unavailable, match=words) as caught:
        await issuer(**changed).issue(make_request("cam-1"), "cam-1", time.time())
    assert caught.value.key == "ca-answer"


@pytest.mark.parametrize(
    ("text", "words"),
    [("exit 3", "ended with status 3"), ("exec sleep 60", "did not end within"), ("", "cannot be started")],
)
async def test_a_command_that_fails_hangs_or_is_not_there_is_told(
    issuer: Callable[..., Issuer], tmp_path: Path, text: str, words: str
) -> None:
    made, script = issuer(), tmp_path / "authority" / "sign"
    script.write_text(f"#!/bin/sh\n{text}\n")
    if not text:
        script.unlink()
    with pytest.raises(Unavailable, match=words) as caught:
        await made.issue(make_request("cam-1"), "cam-1", time.time())
    assert caught.value.key == "ca-unavailable"


async def test_a_bad_request_never_reaches_the_command(issuer: Callable[..., Issuer], tmp_path: Path) -> None:
    made = issuer()
    (tmp_path / "authority" / "sign").unlink()
    with pytest.raises(Unprocessable, match="expected the common name cam-1"):
        await made.issue(make_request("cam-2"), "cam-1", time.time())


async def test_devices_of_the_operator_s_authority_connect_until_they_are_revoked(
    hub_paths: HubPaths, authority: Callable[..., CaSettings], tmp_path: Path
) -> None:
    config = HubConfig(dev=True, mqtt_host="127.0.0.1", mqtt_port=free_port(), ca=authority())
    async with trust_world(hub_paths, SetClock(time.time()), config) as world:
        await world.revoker.publish()
        async with Broker(world.config, world.paths) as broker:
            await broker.ready()
            tls: ssl.SSLContext = (await world.enrol("cam-1")).context(tmp_path)
            assert await is_let_in(world.config.mqtt_port, tls)
            await world.devices.retire("cam-1", OPERATOR)
            broker.reload()

            async def refused() -> bool:
                return not await is_let_in(world.config.mqtt_port, tls)

            await until_async(refused, "the broker to refuse the revoked certificate")
            assert await is_let_in(world.config.mqtt_port, (await world.enrol("cam-2")).context(tmp_path))
