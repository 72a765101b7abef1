"""`mooring fpga build`: a neural network becomes an overlay's folder, on the publisher's own machine."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, fail, note, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloud_hub.fpga.request import FpgaBuilt, FpgaRequest

app = typer.Typer(no_args_is_help=True, help="Overlays for FPGA boards, built on this machine by hls4ml.")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .onnx file; .keras, .h5 or .pt with its framework.")]
Folder = Annotated[Path, typer.Option("--to", "-t", metavar="FOLDER", help="Gets the files to register.")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Inputs, .npz or .csv; the answers go to FOLDER-answers.npz."),
]
Machines = Annotated[
    list[str], typer.Option("--emulate", metavar="MACHINE", help="Such as x86_64; this one and the board's without it.")
]


@app.command(epilog="Example:  mooring fpga build digits.onnx --board pynq-z2 --data training.npz --to overlay")
def build(
    model: Model,
    folder: Folder,
    board: Annotated[str, typer.Option(help="pynq-z2, zcu102 or kria-kv260.")] = "pynq-z2",
    precision: Annotated[str, typer.Option(help="Of what the model leaves open.")] = "ap_fixed<16,6>",
    reuse: Annotated[int, typer.Option(help="Uses of one multiplier per row; 1: fastest and largest.")] = 1,
    clock: Annotated[float, typer.Option(metavar="NS", help="Period of the clock.")] = 10.0,
    result: Annotated[str, typer.Option(metavar="NAME", help="Which of several outputs the circuit answers.")] = "",
    data: Data = None,
    emulate: Machines = [],  # noqa: B006 - typer reads the default, nobody changes it
    synthesis: Annotated[bool, typer.Option(help="Whether Vivado makes a bitstream, where it is on PATH.")] = True,
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="Of each of Vivado's steps.")] = 4 * 3600.0,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the HLS project and the logs here.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Build an overlay: HLS project, bitstream where the vendor's tool is, and an emulation that agrees bit for bit."""
    from cloud_hub.fpga.request import FpgaRequest

    if folder.exists() and any(folder.iterdir()):
        fail(f"{folder}: expected an empty folder or none; nothing was built")
    with tempfile.TemporaryDirectory(prefix="mooring-fpga-") as work:
        request = FpgaRequest(
            model=str(model.resolve()),
            folder=str(folder.resolve()),
            work=str(keep.resolve() if keep else work),
            board=board,
            precision=precision,
            reuse=reuse,
            clock_ns=clock,
            output=result,
            data=str(data.resolve()) if data else "",
            answers=str(_answers(folder).resolve()),
            machines=tuple(emulate),
            synthesise=synthesis,
            synthesis_deadline_s=deadline,
        )
        built = _built(request)
    _show(built, folder, output)


def _built(request: FpgaRequest) -> FpgaBuilt:
    from cloud_hub.errors import HubError
    from cloud_hub.fpga.host import build_overlay

    try:
        return asyncio.run(build_overlay(request, note))
    except HubError as error:
        fail(f"{error.message} ({error.key})")


def _answers(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-answers.npz")


def _show(built: FpgaBuilt, folder: Path, output: Format) -> None:
    show(built, output, _files)
    for missing in built.notes:
        note(missing)
    if built.rows:
        share = f"{built.agreement:.1%} of {built.rows} rows answered as by the model in floating point"
        note(f"{share}, largest difference {built.worst:.3g}; answers in {_answers(folder)}")


def _files(built: FpgaBuilt) -> RenderableType:
    return "\n".join(built.files)
