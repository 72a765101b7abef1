"""Where webhooks may go: which URLs, and which addresses behind them.

A name is resolved at each connection and the address itself is judged in the moment of connecting, so a name that
resolves to something else the next time gains nothing. Without the setting `private_addresses` only addresses that
are routed in the whole Internet are taken: not this machine, not its network, not a cloud's metadata service.
Called by `webhooks` (URLs) and `sending` (connections).
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from cloud_hub.errors import BadRequest

MAX_URL_CHARS: Final = 2000
_HINT: Final = "private_addresses = true under [outward] in hub.toml allows it"
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
_UNICAST: Final = ipaddress.ip_network("2000::/3")  # what IANA gives out of IPv6 for addresses in the Internet
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddress(OSError):
    """The address is not one that webhooks may go to."""


def checked_url(url: str, plain_http: bool, private: bool) -> str:
    """Raises BadRequest `webhook-url-invalid`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _invalid(url, str(error)) from error
    schemes = ("https", "http") if plain_http else ("https",)
    if parts.scheme not in schemes:
        hint = "; plain_http = true under [outward] in hub.toml allows http" if parts.scheme == "http" else ""
        raise _invalid(url, f"expected {' or '.join(schemes)}{hint}")
    if len(url) > MAX_URL_CHARS or not url.isprintable() or " " in url:
        raise _invalid(url, f"expected at most {MAX_URL_CHARS} printable characters without blanks")
    if not parts.hostname or port == 0:
        raise _invalid(url, "expected a host, and a port that is not 0")
    if parts.username is not None or parts.password is not None:
        raise _invalid(url.replace(parts.netloc, parts.hostname), "expected no user and no password in it")
    if parts.fragment:
        raise _invalid(url, "expected no fragment")
    if not private and (address := _literal(parts.hostname)) is not None and not is_public(address):
        raise _invalid(url, f"{address} is an address of this machine or of a private network; {_HINT}")
    return url


def is_public(address: _Address) -> bool:
    """Whether the address, and whatever IPv4 address it stands for, is reachable for all."""
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inside is not None:
            return is_public(inside)
        if address.teredo is not None or address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast


# What aiohttp tells of an address before it connects: family, type, protocol, canonical name, socket address.
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


def public_socket(info: AddressInfo) -> socket.socket:
    """A socket for that address. Raises ForbiddenAddress."""
    address = ipaddress.ip_address(str(info[4][0]).partition("%")[0])
    if not is_public(address):
        raise ForbiddenAddress(f"{address} is an address of this machine or of a private network; {_HINT}")
    return any_socket(info)


def any_socket(info: AddressInfo) -> socket.socket:
    made = socket.socket(info[0], info[1], info[2])
    made.setblocking(False)
    return made


def trusted(ca: str) -> ssl.SSLContext:
    """TLS with the system's authorities and those in the PEM file `ca`. Raises OSError (SSLError is one)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        context.load_verify_locations(ca)
    return context


def _literal(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _invalid(url: str, why: str) -> BadRequest:
    return BadRequest("webhook-url-invalid", f"{url[:200]}: {why}; nothing was changed")
