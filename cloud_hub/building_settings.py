"""How the hub resolves the libraries of scripts: the table `[building]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import re

import msgspec

NO_INDEX = "none"


class BuildingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where libraries of entry scripts come from, and for what they are resolved.

    `index_url` is the package index (empty: uv's own default; "none": no index), `extra_index_urls` further ones, asked
    first, `find_links` folders or pages with wheels. A name and a password for an index stand in the hub's user's
    ~/.netrc. `python` is the version of the devices' interpreter where neither the request nor the profile says one,
    `glibc` the oldest C library that wheels must run with. One resolution has `deadline_s` seconds, and an environment
    may take `max_mib` unpacked.
    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    python: str = "3.11"
    glibc: str = "2.28"
    deadline_s: float = 600.0
    max_mib: int = 2048

    def __post_init__(self) -> None:
        for name, text in (("python", self.python), ("glibc", self.glibc)):
            if not re.fullmatch(r"[0-9]\.[0-9]{1,2}", text):
                raise ValueError(f"building.{name}: expected a version such as 3.11, got {text[:80]!r}")
        for name, urls in (("index_url", (self.index_url,)), ("extra_index_urls", self.extra_index_urls)):
            for url in urls:
                if url not in ("", NO_INDEX) and not re.fullmatch(r"(https?|file)://\S+", url):
                    raise ValueError(
                        f"building.{name}: expected an address such as https://HOST/simple, got {url[:80]!r}"
                    )
        if not self.deadline_s > 0 or self.max_mib < 1:
            got = f"{self.deadline_s}, {self.max_mib}"
            raise ValueError(f"building: expected deadline_s above 0 and max_mib of at least 1, got {got}")
