"""The command `mooring-agent`: enrol this device, run the agent, install from a folder, say how it does, what ails it.

argparse and late imports, because on a small device the start of a command is waited for. Parses, calls one room,
renders. Exit status: 0 done, 1 failed, 2 not understood, 3 (status) no agent runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from agent import __version__

DEFAULT_STATE = "/var/lib/mooring"
STATE_VARIABLE = "MOORING_STATE"
NOT_RUNNING = 3

Handler = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mooring-agent",
        description="The Mooring agent: runs signed machine learning modules on this device.",
    )
    parser.add_argument("--version", action="version", version=f"mooring-agent {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _configure_enroll(commands)
    _configure_run(commands)
    _configure_install(commands)
    _configure_status(commands)
    _configure_retry(commands)
    _configure_doctor(commands)
    _configure_diagnose(commands)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Exits with the command's status."""
    options = build_parser().parse_args(arguments)
    handler: Handler = options.handler
    sys.exit(_guarded(handler, options))


def _configure_enroll(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "enroll",
        "Make this device's key, and trade a claim token for a certificate. Once per device.",
        "mooring-agent enroll --hub https://hub.example.com:8443 --token-file claim.txt --device-id cam-17",
        _enroll,
    )
    parser.add_argument("--hub", required=True, metavar="URL", help="Address of the hub's API, as https://HOST:PORT.")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="T", help="The claim token; others on this machine can see it meanwhile.")
    token.add_argument("--token-file", metavar="F", help="File with the claim token; - is standard input.")
    parser.add_argument("--device-id", metavar="ID", default="", help="This device's id; by default its host name.")
    parser.add_argument("--profile", metavar="P", default="", help="Device profile; by default what is found here.")
    parser.add_argument("--replace", action="store_true", help="Enrol anew a device that is enrolled already.")


def _configure_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "run",
        "Run the agent until SIGTERM or SIGINT: serve the installed modules, keep them up to date.",
        "mooring-agent run --state /var/lib/mooring",
        _run,
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="What goes to standard error (default: %(default)s).",
    )


def _configure_install(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "install",
        "Install what `mooring device export` wrote to a folder, such as a USB stick: no network is needed. The same "
        "checks and the same update as over the network; Ctrl-C stops the waiting, not the update.",
        "mooring-agent install /media/stick/mooring",
        _install,
    )
    parser.add_argument("folder", type=_folder, metavar="DIR", help="The exported folder.")
    parser.add_argument("--json", action="store_true", help="How it ended, as one JSON object on standard output.")


def _configure_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "status",
        "Show what runs here, how the last update went and whether the hub is reached. Status 3 when no agent runs.",
        "mooring-agent status --json",
        _status,
    )
    parser.add_argument("--json", action="store_true", help="One JSON object on standard output.")


def _configure_retry(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "retry",
        "Try a module again that was left alone after too many crashes, and show what is known of them.",
        "mooring-agent retry detector",
        _retry,
    )
    parser.add_argument("module", type=_module, metavar="MODULE", help="Its name, as `status` shows it.")
    parser.add_argument("--json", action="store_true", help="The crashes as a JSON list on standard output.")


def _configure_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "doctor",
        "Check identity, clock, broker, disk, memory and confinement; say what is built in, what each backend would "
        "use here, and why not the rest. Status 1 when something is broken.",
        "mooring-agent doctor",
        _doctor,
    )
    parser.add_argument("--json", action="store_true", help="A JSON list of the checks on standard output.")


def _configure_diagnose(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "diagnose",
        "Write how this device does as one JSON object, without secrets, for whoever helps you: the checks of doctor, "
        "the last report, disk, memory, network, crashes and logs. The same as `mooring device diagnose` brings.",
        "mooring-agent diagnose > cam-17.json",
        _diagnose,
    )
    parser.add_argument("--lines", type=int, default=200, metavar="N", help="Of each log (default: %(default)s).")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, example: str, handler: Handler
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=f"Example: {example}")
    state = os.environ.get(STATE_VARIABLE, DEFAULT_STATE)
    parser.add_argument(
        "--state",
        type=_folder,
        default=_folder(state),
        metavar="DIR",
        help=f"State directory, also as {STATE_VARIABLE}.",
    )
    parser.set_defaults(handler=handler)
    return parser


def _folder(text: str) -> Path:
    """Absolute from here on: workers have another current folder than we."""
    return Path(text).absolute()


def _module(text: str) -> str:
    import re

    from firmware_profiles.profile import NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"expected the name of a module, got {text[:80]!r}")
    return text


def _enroll(options: argparse.Namespace) -> int:
    from agent.config import StatePaths
    from agent.enrol import enrol

    token = options.token or _read_token(options.token_file)
    paths, device, profile = StatePaths(options.state), options.device_id, options.profile
    config = asyncio.run(enrol(paths, options.hub, token, device=device, profile=profile, replace=options.replace))
    print(f"enrolled as {config.device}, profile {config.profile.name}")
    print(f"now run: mooring-agent run --state {options.state}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from agent.release.launcher import launch, start_again

    launch(options.state)  # before anything else: this may not be the agent that shall run
    from agent import logs, service
    from agent.config import AgentConfig, StatePaths
    from agent.hardening import check_private, keep_memory_private

    logs.configure(options.log_level)
    keep_memory_private()
    paths = StatePaths(options.state)
    check_private(paths)
    status = asyncio.run(service.run(AgentConfig.load(paths), paths))
    if status == service.RESTART:
        start_again()
    return status


def _install(options: argparse.Namespace) -> int:
    from agent.config import StatePaths
    from agent.offline.command import install

    return install(StatePaths(options.state), options.folder, options.json)


def _status(options: argparse.Namespace) -> int:
    from agent import status
    from agent.config import StatePaths

    paths = StatePaths(options.state)
    is_running, known = status.running(paths), status.load(paths)
    print(status.as_json(known, is_running) if options.json else status.as_text(known, is_running))
    return 0 if is_running else NOT_RUNNING


def _retry(options: argparse.Namespace) -> int:
    import msgspec

    from agent.config import StatePaths
    from agent.runtimes.evidence import Evidence

    evidence = Evidence(StatePaths(options.state).evidence)
    crashes = evidence.crashes(options.module)
    held = evidence.release(options.module)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(crashes)).decode())
    else:
        for crash in crashes:
            print(f"version {crash.version}, {crash}")
        print(f"{options.module}: {'is tried again' if held else 'was not left alone'}")
    return 0 if held else 1


def _doctor(options: argparse.Namespace) -> int:
    import msgspec

    from agent import doctor
    from agent.config import StatePaths

    checks = asyncio.run(doctor.examine(StatePaths(options.state)))
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(checks)).decode())
    else:
        for check in checks:
            print(f"{check.result:5} {check.name:16} {check.text}")
            if check.hint:
                print(f"{'':22} -> {check.hint}")
    return 1 if any(check.result == "fail" for check in checks) else 0


def _diagnose(options: argparse.Namespace) -> int:
    from agent.asked.bundle import bundle
    from agent.config import StatePaths

    print(asyncio.run(bundle(StatePaths(options.state), max(0, min(options.lines, 20_000)))).decode())
    return 0


def _read_token(name: str) -> str:
    """Raises OSError."""
    return (sys.stdin.read() if name == "-" else Path(name).read_text()).strip()


def _guarded(handler: Handler, options: argparse.Namespace) -> int:
    """Failures as one line with their causes, the innermost last; a traceback only for what nobody foresaw."""
    from agent.errors import AgentError
    from modules.errors import ModuleError

    try:
        return handler(options)
    except (AgentError, ModuleError, OSError) as error:
        print(f"mooring-agent: {_chain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _chain(error: BaseException | None) -> str:
    words: list[str] = []
    while error is not None:
        text = str(error) or type(error).__name__
        if not words or text not in words[-1]:
            words.append(text)
        error = error.__cause__
    return ": ".join(words)


if __name__ == "__main__":
    main()
