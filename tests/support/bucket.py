"""An S3-compatible store for tests, which checks signatures: one bucket in memory, over HTTP or HTTPS on loopback.

Written for these tests from the public description of Signature Version 4 ("Authenticating Requests: Using the
Authorization Header" and "Using Query Parameters" in the Amazon S3 API reference): every request must be signed, by
header or in its address, and is signed again here; what differs, or has ended, is refused. It knows PUT, GET with
Range, HEAD, DELETE, lists and multipart uploads. It is not Amazon's.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote

from aiohttp import web

ALGORITHM = "AWS4-HMAC-SHA256"
STORED_AT = "2026-11-21T10:00:00.000Z"  # of every object


@dataclass
class Bucket:
    """What it holds, what it was asked, and how it fails: `down` refuses everything."""

    name: str = "models"
    region: str = "eu-north-1"
    access_key_id: str = "AKEXAMPLE"
    secret_access_key: str = "secret/of+the+tests"
    endpoint: str = ""
    down: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.down:
            return web.Response(status=500)
        why = self.wrong(request, body)
        if why:
            self.refused.append(why)
            return web.Response(status=403, text=f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>")
        prefix = f"/{self.name}/"
        if request.path.rstrip("/") == f"/{self.name}" and request.query.get("list-type") == "2":
            return self.listed(request.query.get("prefix", ""))
        if not request.path.startswith(prefix):
            return web.Response(status=404, text="<Error><Code>NoSuchBucket</Code></Error>")
        return self.act(request, request.path.removeprefix(prefix), body)

    def act(self, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
        upload = request.query.get("uploadId", "")
        if request.method == "POST" and "uploads" in request.query:
            self.parts[key] = {}
            found = (
                f"<InitiateMultipartUploadResult><UploadId>{len(self.parts)}</UploadId></InitiateMultipartUploadResult>"
            )
            return web.Response(text=found)
        if request.method == "PUT" and upload:
            self.parts[key][int(request.query["partNumber"])] = body
            return web.Response(headers={"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})
        if request.method == "POST" and upload:
            self.objects[key] = b"".join(part for _, part in sorted(self.parts.pop(key).items()))
            self.puts.append(key)
            return web.Response(text='<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')
        if request.method == "PUT":
            self.objects[key] = body
            self.puts.append(key)
            return web.Response(headers={"ETag": '"x"'})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        return self.read(request, key)

    def listed(self, prefix: str) -> web.StreamResponse:
        """All on one page."""
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{STORED_AT}</LastModified><ETag>x</ETag>"
            f"<Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")

    def read(self, request: web.Request, key: str) -> web.StreamResponse:
        data = self.objects.get(key)
        if data is None or request.method not in {"GET", "HEAD"}:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        about = {"ETag": '"x"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
        part = request.http_range
        start, stop, _ = part.indices(len(data))
        if part.start is None:
            return web.Response(body=data, headers={**about, "Content-Length": str(len(data))})
        about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:stop], headers=about)

    def wrong(self, request: web.Request, body: bytes) -> str:
        """Why the signature does not count; empty when it does."""
        try:
            if "X-Amz-Signature" in request.query:
                return self.wrong_address(request)
            return self.wrong_header(request, body)
        except (KeyError, ValueError, IndexError) as error:
            return f"no signature that can be read: {error!r}"

    def wrong_address(self, request: web.Request) -> str:
        said = request.query
        at = datetime.strptime(said["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if datetime.now(UTC) >= at + timedelta(seconds=int(said["X-Amz-Expires"])):
            return "the address has ended"
        names = said["X-Amz-SignedHeaders"].split(";")
        right = self.signature(request, said["X-Amz-Credential"], said["X-Amz-Date"], names, "UNSIGNED-PAYLOAD")
        return "" if hmac.compare_digest(right, said["X-Amz-Signature"]) else "another signature"

    def wrong_header(self, request: web.Request, body: bytes) -> str:
        kind, _, rest = request.headers["Authorization"].partition(" ")
        said = dict(item.strip().split("=", 1) for item in rest.split(","))
        payload = request.headers["X-Amz-Content-Sha256"]
        if kind != ALGORITHM or payload not in {hashlib.sha256(body).hexdigest(), "UNSIGNED-PAYLOAD"}:
            return "another body"
        names, at = said["SignedHeaders"].split(";"), request.headers["X-Amz-Date"]
        right = self.signature(request, said["Credential"], at, names, payload)
        return "" if hmac.compare_digest(right, said["Signature"]) else "another signature"

    def signature(self, request: web.Request, credential: str, at: str, names: list[str], payload: str) -> str:
        key_id, day, region, service, end = credential.split("/")
        expected = (self.access_key_id, at[:8], self.region, "s3", "aws4_request")
        if (key_id, day, region, service, end) != expected or "host" not in names:
            raise ValueError("another scope")
        path, _, query = request.raw_path.partition("?")
        pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "X-Amz-Signature"]
        canonical = "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs))
        headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in names)
        asked = "\n".join((request.method, path, canonical, headers, ";".join(names), payload))
        scope = f"{day}/{region}/{service}/{end}"
        text = "\n".join((ALGORITHM, at, scope, hashlib.sha256(asked.encode()).hexdigest()))
        key = f"AWS4{self.secret_access_key}".encode()
        for step in (day, region, service, end):
            key = hmac.digest(key, step.encode(), "sha256")
        return hmac.new(key, text.encode(), "sha256").hexdigest()


@asynccontextmanager
async def serving(bucket: Bucket, tls: ssl.SSLContext | None = None) -> AsyncIterator[Bucket]:
    """`bucket.endpoint` is where it is, inside."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{anything:.*}", bucket.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    address = runner.addresses[0]
    bucket.endpoint = f"{'https' if tls else 'http'}://localhost:{address[1]}"
    try:
        yield bucket
    finally:
        await runner.cleanup()
