"""A client of a bucket, with its patience: for blobs that lie in one (`objects`) and for copies in one (`mirror`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cloud_hub.bucket.settings import Place
from cloud_hub.errors import Unavailable
from cloud_hub.transfer_settings import S3Credentials

if TYPE_CHECKING:
    from obstore.store import S3Store

TRIES: Final = 3
CONNECT_S: Final = 5.0


def open_store(
    place: Place,
    endpoint: str,
    region: str,
    credentials: Callable[[], S3Credentials],
    request_s: float,
    transfer_s: float,
    checksums: bool = False,
) -> S3Store:
    """Sends nothing. Raises Unavailable `s3-unavailable` where the library or the credentials are missing.

    A question has `request_s` with all its tries, a whole file `transfer_s`.
    """
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise Unavailable("s3-unavailable", "buckets need a library: pip install 'mooring[s3]'") from error
    try:
        found = credentials()
    except ValueError as error:
        raise Unavailable("s3-unavailable", str(error)) from error
    wait = timedelta(seconds=request_s)
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        endpoint=endpoint,
        region=region,
        access_key_id=found.access_key_id,
        secret_access_key=found.secret_access_key,
        virtual_hosted_style_request=False,
        config={"checksum_algorithm": "SHA256"} if checksums else {},
        disable_bulk_delete=True,  # not every store knows it
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=transfer_s),
            "connect_timeout": min(wait, timedelta(seconds=CONNECT_S)),
            "read_timeout": wait,
        },
        retry_config={"max_retries": TRIES, "retry_timeout": wait},
    )
