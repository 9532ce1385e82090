"""The command ``dcp-cloud``. Needs the extra ``cli``."""

import math
import os
import sys
from datetime import timedelta
from typing import Annotated, Any

from dcp_core.bench import Round, measure_bucket, summary
from dcp_core.config import GIB, MIB, LoadOptions
from dcp_core.endpoint import Endpoint
from dcp_core.errors import CloudCheckpointError
from dcp_core.gc import find_leftovers, remove_leftovers
from dcp_core.load.record import read_record
from dcp_core.registry import known_schemes
from dcp_core.transfer import Transfer

__all__ = ["main"]


def _application() -> Any:
    import typer
    from rich.console import Console
    from rich.table import Table
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    application = typer.Typer(help="DCP checkpoints in cloud buckets.", no_args_is_help=True)
    console = Console(highlight=False)

    @application.command()
    def schemes() -> None:
        """URL schemes that the installed backends serve."""
        for scheme in known_schemes():
            console.print(f"{scheme}://")

    @application.command()
    def inspect(url: str) -> None:
        """What a committed checkpoint holds."""
        endpoint = Endpoint(url, LoadOptions, {})
        metadata, _ = read_record(endpoint.store(), endpoint.location, Transfer(endpoint.options, 0))
        table = Table("name", "kind", "shape", "chunks")
        total = 0
        for name, entry in sorted(metadata.state_dict_metadata.items()):
            if isinstance(entry, TensorStorageMetadata):
                dtype = entry.properties.dtype
                total += math.prod(entry.size) * dtype.itemsize
                table.add_row(
                    name, str(dtype).removeprefix("torch."), str(list(entry.size)), str(len(entry.chunks))
                )
            else:
                table.add_row(name, "object", "", "1")
        console.print(table)
        objects = {info.relative_path for info in metadata.storage_data.values()}
        console.print(f"{total / 2**20:.1f} MiB of tensors in {len(objects)} data objects")

    @application.command()
    def gc(
        url: str,
        older_than_hours: Annotated[
            float, typer.Option(help="Leave alone what changed within this many hours.")
        ] = 24.0,
        delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    ) -> None:
        """Find, and with --delete remove, what failed saves left at a URL and below it."""
        endpoint = Endpoint(url, LoadOptions, {})
        store = endpoint.store()
        found = find_leftovers(store, endpoint.location, timedelta(hours=older_than_hours))
        for info in found.objects:
            console.print(f"object {info.key} {info.size} bytes", markup=False, soft_wrap=True)
        for upload in found.uploads:
            console.print(f"upload {upload.upload.key}", markup=False, soft_wrap=True)
        for key in found.unreadable:
            console.print(f"left alone: {key} is not readable", markup=False, soft_wrap=True)
        if delete:
            remove_leftovers(store, found)
        console.print(
            f"{len(found.objects)} objects ({found.size / 2**20:.1f} MiB) and {len(found.uploads)} uploads "
            + ("deleted" if delete else "found; --delete removes them")
        )

    @application.command()
    def bench(
        url: str,
        gib: Annotated[float, typer.Option(help="GiB of each rank's state.")] = 1.0,
        tensor_mib: Annotated[float, typer.Option(help="MiB of each tensor.")] = 16.0,
        rounds: Annotated[int, typer.Option(help="How often to save and load.", min=1)] = 3,
        concurrency: Annotated[int, typer.Option(help="Requests in flight of each rank.")] = 8,
    ) -> None:
        """Measure saving to and loading from a URL; what it writes there is deleted afterwards.

        With several ranks: torchrun --nproc-per-node 8 --no-python dcp-cloud bench URL
        """
        quiet = os.environ.get("RANK", "0") != "0"
        table = Table("", "GB/s", "seconds", "CPU s/GiB")
        kept: dict[str, list[Round]] = {}
        measured = measure_bucket(
            url,
            size=int(gib * GIB),
            tensor_size=max(8, int(tensor_mib * MIB) // 8 * 8),
            rounds=rounds,
            options={"concurrency": concurrency},
        )
        for one in measured:
            kept.setdefault(one.operation, []).append(one)
            if not quiet:
                console.print(f"{one.operation} {one.size / one.wall / 1e9:.2f} GB/s in {one.wall:.2f} s")
        for operation, found in kept.items():
            medians = summary(found)
            table.add_row(
                *(f"{operation}, median of {len(found)}", f"{medians.rate / 1e9:.2f}"),
                *(f"{medians.wall:.2f}", f"{medians.cpu_per_gib:.2f}"),
            )
        if not quiet:
            console.print(table)

    return application


def main() -> None:
    """Entry point of the command."""
    try:
        application = _application()
    except ImportError as error:
        sys.exit(f"dcp-cloud needs {error.name}: pip install 'dcp-cloud[cli]'")
    try:
        application()
    except CloudCheckpointError as error:
        sys.exit(f"dcp-cloud: {error}")


if __name__ == "__main__":
    main()
