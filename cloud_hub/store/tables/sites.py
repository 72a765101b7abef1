"""Other hubs that data is carried from or to, and what they have told of their devices."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, LargeBinary, String, Table, Text

from cloud_hub.store.tables.base import metadata

# Hubs whose seal counts here: sites that this hub merges, and the hub whose receipts this one takes.
sites = Table(
    "sites",
    metadata,
    Column("name", String(20), primary_key=True),
    Column("public_key", Text, nullable=False),  # PEM, Ed25519
    Column("added_at", Float, nullable=False),
    Column("merged_at", Float),  # by this hub's clock
    Column("made_at", Float),  # when the newest merged pack was made, by the site's
)
# The devices of sites: what is known of them, under SITE.DEVICE.
site_devices = Table(
    "site_devices",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("site", String(20), nullable=False, index=True),
    Column("profile", String(63), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("report", LargeBinary),  # DeviceReport JSON as signed by the device
    Column("report_at", Float),  # by the site's clock
    Column("made_at", Float, nullable=False),  # of the pack that it comes from
)
# On a site: up to which row another hub has everything of a stream, as its receipts say.
site_marks = Table(
    "site_marks",
    metadata,
    Column("stream", String(16), primary_key=True),
    Column("mark", BigInteger, nullable=False),
)
