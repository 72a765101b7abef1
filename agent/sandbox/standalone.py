"""A module served without an agent: `python -m agent.sandbox.standalone SLOT`, in an image of its own or on a desk.

The same session as a device's worker has: confined as far as can be, loaded, tested by its golden inputs, served, and
drained at SIGTERM or SIGINT. It says what happens as JSON lines on standard output. Nobody updates it and nobody takes
its windows and samples: they are printed too, or dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from agent.errors import AgentError
from agent.sandbox.protocol import BlobTaken, SampleTaken, Start, WindowClosed
from agent.sandbox.worker import quiet_libraries
from modules.errors import ModuleError
from modules.images import INNER_MANIFEST
from modules.manifest import decode_manifest
from modules.messages import decode_sample
from modules.windows import decode_window

MANIFEST_FILE = "manifest.json"  # as in a device's slot
BACKLOG = 1024


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 when the module does not load or does not pass its golden inputs."""
    options = _options().parse_args(arguments)
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return asyncio.run(_serve(options))
    except (AgentError, ModuleError) as error:
        _say("failed", key=error.key, why=str(error))
    except OSError as error:
        _say("failed", key="io", why=str(error))
    return 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.sandbox.standalone", description=__doc__)
    parser.add_argument("slot", type=Path, help="folder with the module's files and its manifest")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--config", default="{}", help="the module's configuration, a JSON object")
    parser.add_argument("--items", action="store_true", help="print windows and samples, too")
    parser.add_argument("--drain", type=float, default=10.0, help="seconds for requests that are under way at the end")
    parser.add_argument("--no-confine", action="store_true", help="for a debugger")
    return parser


async def _serve(options: argparse.Namespace) -> int:
    from agent.sandbox.session import Session  # the heavy libraries, now that their environment is set

    body = _manifest(options.slot)
    manifest = decode_manifest(body)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    listening = _bound(options.host, options.port)
    order = Start(
        slot=str(options.slot.resolve()),
        manifest=body,
        sampling=manifest.sampling,
        listen=(listening.detach(),),
        confine=not options.no_confine,
        config=options.config.encode(),
    )
    session = Session(order, _print if options.items else _ignore)
    ready = session.ready
    _say("loaded", module=f"{manifest.name}:{manifest.version}", execution=ready.execution, level=ready.level.value)
    passed = session.self_test()
    await session.serve()
    host, port = _address(order.listen[0])
    _say("serving", url=f"http://{host}:{port}/v2/models/{manifest.name}", golden_cases=passed.cases)
    await stop.wait()
    cut = await session.drain(options.drain)
    session.close()
    _say("drained", cut=cut)
    return 0


def _manifest(slot: Path) -> bytes:
    """An image holds the one without the container: it cannot hold its own digest."""
    inner = slot / INNER_MANIFEST
    return (inner if inner.is_file() else slot / MANIFEST_FILE).read_bytes()


def _bound(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def _address(handle: int) -> tuple[str, int]:
    with socket.socket(fileno=os.dup(handle)) as listening:
        name: tuple[str, int] = listening.getsockname()[:2]
        return name


def _print(notice: WindowClosed | SampleTaken | BlobTaken) -> bool:
    if isinstance(notice, WindowClosed):
        _say("window", window=decode_window(notice.window))
    elif isinstance(notice, SampleTaken):
        _say("sample", sample=decode_sample(notice.sample))
    return True


def _ignore(notice: WindowClosed | SampleTaken | BlobTaken) -> bool:
    return True


def _say(event: str, **fields: object) -> None:
    sys.stdout.write(msgspec.json.encode({"event": event, **fields}).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a module's thread that never ends must not keep the process
