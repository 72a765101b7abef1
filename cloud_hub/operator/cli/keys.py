"""`mooring key`: signing keys on this machine, for publishers and for holders of root keys. No hub is asked."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, note, show, told

app = typer.Typer(no_args_is_help=True, help="Signing keys on this machine: make, list.")


class Scheme(enum.StrEnum):
    ED25519 = "ed25519"
    ECDSA = "ecdsa-p256"
    RSA = "rsa-3072"


def ask_secret(what: str) -> str:
    """From the terminal, without showing it."""
    return str(typer.prompt(what, hide_input=True, err=True))


@app.command(epilog="Example:  mooring key new publisher-acme --out /media/stick/publisher-acme.pem --passphrase")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for, such as publisher-acme.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the private key goes; NAME.pem without it.")
    ] = None,
    scheme: Annotated[Scheme, typer.Option(help="The kind of key.")] = Scheme.ED25519,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="Encrypt the file with a passphrase (asked for, or from MOORING_KEY_PASSPHRASE)."
        ),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Make a signing key: the private half in FILE, for its owner only; the public half beside it, ending in .pub."""
    import os

    from cloud_hub.operator import render_trust, signing

    secret = ""
    if passphrase:
        secret = os.environ.get(signing.PASSPHRASE_VARIABLE) or str(
            typer.prompt("new passphrase", hide_input=True, confirmation_prompt=True, err=True)
        )
    with told():
        made = signing.create(out or Path(f"{name}.pem"), scheme.value, secret)
    show([made], output, render_trust.keys)
    note("keep a copy of the private key in another place; give away only the file that ends in .pub")


@app.command("list", epilog="Example:  mooring key list /media/stick")
def list_keys(
    paths: Annotated[list[Path], typer.Argument(metavar="FOLDER|FILE...", help="Keys, or folders with keys.")],
    output: Output = Format.TABLE,
) -> None:
    """List keys with their ids, as they stand in signed metadata."""
    from cloud_hub.operator import render_trust, signing

    with told():
        found = signing.list_keys(paths, ask_secret)
    show(found, output, render_trust.keys)
