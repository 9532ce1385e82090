"""``dcp-cloud convert``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcp_core.cli.arguments import Concurrency, Json
from dcp_core.cli.output import Transferring, print_json, print_line
from dcp_core.convert import Format
from dcp_core.convert import convert as convert_checkpoint

__all__ = ["convert"]


def convert(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Path or URL.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TO", help="Path or URL.", show_default=False)],
    *,
    to: Annotated[
        Format | None,
        typer.Option(
            help="What to make; torch for names ending in .pt, .pth, .bin or .ckpt, dcp of what is none.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = True,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let FROM run code: for files that need weights_only=False.")
    ] = False,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> None:
    """Make a torch.save file, a DCP checkpoint or a HuggingFace folder of another one of these.

    A tensor at a time: what is converted may be larger than memory. TO is there once it is whole.
    """
    options: dict[str, Any] = {"concurrency": concurrency}
    with Transferring("converting") as progress:
        made = convert_checkpoint(
            source,
            target,
            target=to,
            source_options={**options, "weights_only": not trust},
            target_options={**options, "overwrite": overwrite},
            progress=progress,
        )
    if json:
        print_json({"from": source, "to": target, "format": made.value})
    else:
        print_line(f"{target}: {made.value}")
