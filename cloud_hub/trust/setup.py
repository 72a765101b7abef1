"""Makes everything that a new hub trusts and is trusted by: signing keys, authorities, certificates, first metadata.

Runs once, from `mooring-hub init`. It opens the new hub's database itself, because no service runs yet.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cloud_hub.bucket.opening import open_blobs
from cloud_hub.clock import Clock, system_clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict
from cloud_hub.events import Events
from cloud_hub.hardening import opened
from cloud_hub.store.address import database_url
from cloud_hub.store.engine import Store
from cloud_hub.trust.ca import (
    DEVICE_LIFE,
    CertificateAuthority,
    new_authority,
    new_hub_client,
    new_server,
)
from cloud_hub.trust.director import Director
from cloud_hub.trust.image import ImageRepository
from cloud_hub.trust.keys import ONLINE, PRIVATE_FOLDER, Keys, create_key, offline

LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def create(
    paths: HubPaths, config: HubConfig, offline_keys: Path | None = None, clock: Clock = system_clock
) -> None:
    """Fills an empty hub directory.

    A development hub keeps every key itself; any other needs `offline_keys`, a folder outside the hub, for the root,
    targets and publisher keys, which the running hub never reads. Raises BadRequest `offline-keys-required` or
    `offline-keys-inside`, Conflict `already-initialised`; each before anything is written.
    """
    folder = _offline_folder(paths, config, offline_keys)
    if paths.server_ca_key.exists():
        raise Conflict("already-initialised", f"{paths.root}: there is a hub already; nothing was changed")
    for private in (paths.root, paths.keys, paths.ca, paths.broker, folder):
        private.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    for name in ONLINE:
        create_key(paths.keys, name)
    for name in offline(config.publisher):
        create_key(folder, name)
    create_certificates(paths, config, clock())
    await _sign_first_metadata(paths, config, Keys(paths.keys, folder), clock)


def load_authority(paths: HubPaths, life: timedelta = DEVICE_LIFE) -> CertificateAuthority:
    """The authority of a hub directory that `create` has filled. `life` is that of devices' certificates."""
    device_ca = (paths.device_ca_crt, opened(paths.device_ca_key))
    return CertificateAuthority.load(device_ca, paths.server_ca_crt, paths.crl, life)


def create_certificates(paths: HubPaths, config: HubConfig, now: float) -> None:
    """Both authorities, the servers' certificate, the hub's MQTT client, and an empty revocation list."""
    server_ca = new_authority("Mooring server CA", now)
    device_ca = new_authority("Mooring device CA", now)
    server_ca.write(paths.server_ca_crt, paths.server_ca_key)
    device_ca.write(paths.device_ca_crt, paths.device_ca_key)
    new_server(server_ca, (config.public_host, *LOOPBACK), now).write(paths.server_crt, paths.server_key)
    new_hub_client(device_ca, now).write(paths.hub_client_crt, paths.hub_client_key)
    load_authority(paths).write_crl((), now, timedelta(days=config.crl_days))


async def _sign_first_metadata(paths: HubPaths, config: HubConfig, keys: Keys, clock: Clock) -> None:
    store = await Store.open(database_url(config, paths), migrate=True)
    try:
        image = ImageRepository(store, open_blobs(config, paths), Events(store, clock), keys, clock)
        await image.create(config.publisher)
        await Director(store, keys, clock).create()
    finally:
        await store.close()


def _offline_folder(paths: HubPaths, config: HubConfig, offline_keys: Path | None) -> Path:
    if offline_keys is None:
        if not config.dev:
            raise BadRequest(
                "offline-keys-required",
                "a hub that is not for development keeps its root and publisher keys elsewhere: name a folder with "
                "--offline-keys, or make a development hub with --dev; nothing was created",
            )
        return paths.keys
    if offline_keys.resolve().is_relative_to(paths.root.resolve()):
        raise BadRequest(
            "offline-keys-inside",
            f"{offline_keys} lies inside the hub {paths.root}: expected a folder elsewhere; nothing was created",
        )
    return offline_keys
