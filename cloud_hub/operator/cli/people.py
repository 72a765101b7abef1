"""`mooring login`, `logout`, `whoami`, `user` and `token`: who one is, and who else may do what."""

from __future__ import annotations

import asyncio
import getpass
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, Settings, act, note, show, stdout, told
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.contexts import current, path_of
from cloud_hub.operator.errors import OperatorError, Refused
from cloud_hub.roles import Role

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient

account = typer.Typer()
users = typer.Typer(no_args_is_help=True, help="Users: people who log in at this hub with a password.")
tokens = typer.Typer(no_args_is_help=True, help="Service tokens: what programs use instead of a password.")

UserName = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
OfRole = Annotated[Role, typer.Option("--role", help="What they may do.")]
OfScope = Annotated[
    str,
    typer.Option("--scope", metavar="QUERY", help="Which devices: 'site=lab or id=demo-*'; all without it."),
]
PasswordFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The password is its first line; - reads standard input.")
]


@account.command(epilog="Example:  mooring login https://hub.example.com:8443 --user ann --ca hub-ca.crt")
def login(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the hub: https://HOST:PORT.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The hub's CA certificate: DIR/ca/server-ca.crt there.")],
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a token; - reads standard input.")
    ] = None,
    user: Annotated[str, typer.Option(metavar="NAME", help="Log in with a password instead of a token.")] = "",
    password_file: PasswordFile = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Keep it under a name, beside others: see `mooring context`.")
    ] = "",
) -> None:
    """Remember a hub, after checking that it answers and takes the token or the password."""
    if bool(user) == (token_file is not None):
        raise typer.BadParameter("expected either --token-file FILE or --user NAME")
    settings = context.find_object(Settings) or Settings()
    with told():
        target = path_of(name) if name else settings.path
    if (target.parent / "hub.toml").is_file():  # the only copy of the operator's access in that form
        raise typer.BadParameter(f"{target} is a hub's own: unset MOORING_CONTEXT, or name another file with --context")
    with told():
        secret = _password(password_file, f"password of {user}") if user else _first_line(token_file)
        known = asyncio.run(_logged_in(_context(url, ca, "" if user else secret), user, secret))
        known.write(target)
    note(f"logged in to {url}; kept in {target}")
    if name and name != current():
        note(f"choose it for every command: mooring context use {name}")


@account.command(epilog="Example:  mooring logout")
def logout(context: typer.Context) -> None:
    """End a session that began with `mooring login --user`."""
    act(context, lambda hub: hub.logout())
    note("logged out")


@account.command(epilog="Example:  mooring whoami")
def whoami(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Show who the hub takes you for: name, role, scope."""
    found = act(context, lambda hub: hub.who_am_i())
    from cloud_hub.operator import render_people

    show(found, output, render_people.who_am_i)


@users.command("add", epilog="Example:  mooring user add ann --role operator --scope site=lab")
def add_user(
    context: typer.Context,
    name: UserName,
    role: OfRole = Role.VIEWER,
    scope: OfScope = "",
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Add a user; asks for the password."""
    with told():
        password = _password(password_file, f"password for {name}", new=True)
    found = act(context, lambda hub: hub.add_user(name, password, role, scope))
    from cloud_hub.operator import render_people

    show([found], output, render_people.users)


@users.command("list", epilog="Example:  mooring user list")
def list_users(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List users with role and scope."""
    found = act(context, lambda hub: hub.all_of(hub.users()))
    from cloud_hub.operator import render_people

    show(found, output, render_people.users)


@users.command("change", epilog="Example:  mooring user change ann --role viewer --scope 'site=lab or site=lyon'")
def change_user(
    context: typer.Context,
    name: UserName,
    role: Annotated[Role | None, typer.Option("--role", help="What they may do from now on.")] = None,
    scope: Annotated[
        str | None, typer.Option("--scope", metavar="QUERY", help="To which devices from now on; '' for all.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a user's role or scope; it holds from their next request on."""
    found = act(context, lambda hub: hub.change_user(name, role=role, scope=scope))
    from cloud_hub.operator import render_people

    show([found], output, render_people.users)


@users.command(epilog="Example:  mooring user disable ann")
def disable(context: typer.Context, name: UserName) -> None:
    """Keep a user out from now on; their sessions end."""
    act(context, lambda hub: hub.change_user(name, disabled=True))
    note(f"disabled {name}")


@users.command(epilog="Example:  mooring user enable ann")
def enable(context: typer.Context, name: UserName) -> None:
    """Let a user in again who was disabled."""
    act(context, lambda hub: hub.change_user(name, disabled=False))
    note(f"enabled {name}")


@users.command(epilog="Example:  mooring user password ann")
def password(
    context: typer.Context,
    name: UserName,
    password_file: PasswordFile = None,
    current_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The current password is its first line: for one's own.")
    ] = None,
) -> None:
    """Set a password: your own, or as an admin anybody's. The user's sessions end."""

    async def work(hub: HubClient) -> None:
        who = await hub.who_am_i()
        own = who.kind == "user" and who.name == name
        current = _password(current_file, "your current password") if own else ""
        await hub.set_password(name, _password(password_file, f"new password for {name}", new=True), current)

    act(context, work)
    note(f"password of {name} set")


@tokens.command("create", epilog="Example:  mooring token create ci --role publisher --days 90")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the audit trail calls its bearer.")],
    role: OfRole = Role.VIEWER,
    scope: OfScope = "",
    days: Annotated[float, typer.Option(min=0.001, max=366, help="How long it may be used.")] = 90.0,
    output: Output = Format.TABLE,
) -> None:
    """Make a service token. It is printed once; the hub keeps only its digest."""
    made = act(context, lambda hub: hub.create_api_token(name, role, scope, days * 86_400))
    if output is not Format.TABLE:
        show(made, output, str)
        return
    stdout().print(made.token, soft_wrap=True)
    note(f"token {made.id} of {name} ({role}); revoke it with:  mooring token revoke {made.id}")


@tokens.command("list", epilog="Example:  mooring token list")
def list_tokens(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List service tokens: never their secrets."""
    found = act(context, lambda hub: hub.all_of(hub.api_tokens()))
    from cloud_hub.operator import render_people

    show(found, output, render_people.tokens)


@tokens.command(epilog="Example:  mooring token revoke 5f0c2a9b7d11")
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `mooring token list` shows it.")],
) -> None:
    """Take a service token away, at once."""
    act(context, lambda hub: hub.revoke_api_token(token))
    note(f"revoked {token}")


async def _logged_in(known: HubContext, user: str, secret: str) -> HubContext:
    """The context to keep: with the session's token for a user, as it is for a token that the hub takes."""
    import msgspec

    from cloud_hub.operator.client import HubClient

    async with HubClient(known) as hub:
        try:
            if user:
                return msgspec.structs.replace(known, token=(await hub.login(user, secret)).token)
            await hub.who_am_i()
        except Refused as error:
            raise OperatorError(error.key, f"{known.url}: {error.message}; nothing was kept") from error
    return known


def _context(url: str, ca: Path, token: str) -> HubContext:
    try:
        return HubContext(url.rstrip("/"), token, str(ca.resolve()))
    except (OSError, ValueError) as error:
        raise OperatorError("login-invalid", f"{error}; nothing was kept") from error


def _password(file: Path | None, what: str, new: bool = False) -> str:
    """From the file, else asked for without showing it; a new one twice."""
    if file is not None:
        return _first_line(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would read, and show, what comes in
        try:
            given = getpass.getpass(f"{what}: ")
            again = getpass.getpass(f"{what} again: ") if new else given
        except (getpass.GetPassWarning, EOFError) as error:
            ways = "--password-file FILE, or --password-file - for standard input"
            raise OperatorError("terminal-missing", f"no terminal to ask for the {what} on: give {ways}") from error
    if again != given:
        raise OperatorError("password-differs", "the two passwords differ; nothing was changed")
    return given


def _first_line(file: Path | None) -> str:
    try:
        text = sys.stdin.readline() if file is None or str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError("login-invalid", f"{error}; nothing was kept") from error
    return text.strip().split("\n")[0].strip()
