"""The directory of one more replica, made from that of another: the same hub, with a name of its own at the broker.

What replicas share lies outside: the database, the bucket, the broker. What each must have is copied: settings, keys,
authorities, roots, the revocation list. Called by `cli`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from cloud_hub.bucket.settings import FOLDER
from cloud_hub.clock import Clock, system_clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict
from cloud_hub.hardening import opened
from cloud_hub.trust.ca import HUB_CLIENT_NAME, Identity, new_hub_client
from cloud_hub.trust.keys import PRIVATE_FOLDER, write_private

COPIED: Final = ("keys", "ca", "roots")


def add_replica(paths: HubPaths, target: Path, name: str, clock: Clock = system_clock) -> HubPaths:
    """`target` must not exist or be empty; it is a whole directory at the end, or as it was.

    Raises Conflict `not-shared`, `keys-sealed` or `folder-not-empty`, BadRequest `config-invalid`.
    """
    config = _shared(HubConfig.load(paths.root, {}), name)
    if (paths.root / "sealed").is_dir():
        text = f"the keys in {paths.root} are sealed to this machine: make replicas from an unsealed copy"
        raise Conflict("keys-sealed", f"{text}; nothing was created")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict("folder-not-empty", f"{target}: expected an empty folder or none; nothing was created")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = HubPaths(Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-")))
    try:
        _make(paths, making, config, clock)
        if target.exists():
            target.rmdir()
        making.root.rename(target)
    except BaseException:
        shutil.rmtree(making.root, ignore_errors=True)
        raise
    return HubPaths(target)


def _shared(config: HubConfig, name: str) -> HubConfig:
    """The settings of the new one. Raises Conflict `not-shared` where the first has something for itself."""
    alone = [
        said
        for said, is_so in (
            ("database (a PostgreSQL)", not config.uses_postgres),
            ("blobs (s3://...)", config.blobs == FOLDER),
            ("broker (mqtts://...)", not config.broker),
            ("replicas.name (of this one)", not config.replicas.name),
        )
        if is_so
    ]
    if alone:
        raise Conflict("not-shared", f"replicas share everything; set first: {', '.join(alone)}; nothing was created")
    if name == config.replicas.name:
        raise BadRequest("config-invalid", f"replicas.name: {name} is the first one's; nothing was created")
    names = tuple(dict.fromkeys((config.replicas.name, *config.replicas.names, name)))
    try:
        replicas = msgspec.structs.replace(config.replicas, name=name, names=names)
    except ValueError as error:
        raise BadRequest("config-invalid", f"{error}; nothing was created") from error
    return msgspec.structs.replace(config, replicas=replicas)


def client_name(config: HubConfig) -> str:
    """What this process is called at the broker: user name and client id."""
    return f"{HUB_CLIENT_NAME}-{config.replicas.name}" if config.replicas.name else HUB_CLIENT_NAME


def ensure_client(paths: HubPaths, config: HubConfig, clock: Clock = system_clock) -> None:
    """Has the hub's client certificate carry that name: a directory that was copied gets one of its own."""
    found = x509.load_pem_x509_certificate(paths.hub_client_crt.read_bytes()).subject
    wanted = client_name(config)
    if [name.value for name in found.get_attributes_for_oid(NameOID.COMMON_NAME)] != [wanted]:
        authority = Identity.load(paths.device_ca_crt, opened(paths.device_ca_key))
        new_hub_client(authority, clock(), wanted).write(paths.hub_client_crt, paths.hub_client_key)


def _make(source: HubPaths, making: HubPaths, config: HubConfig, clock: Clock) -> None:
    for folder in COPIED:
        shutil.copytree(source.root / folder, making.root / folder)
        (making.root / folder).chmod(PRIVATE_FOLDER)
    write_private(making.crl, source.crl.read_bytes())
    ensure_client(making, config, clock)
    for file in (source.operator_token, source.context):
        if file.is_file():
            write_private(making.root / file.name, file.read_bytes())
    config.write(making.root)
