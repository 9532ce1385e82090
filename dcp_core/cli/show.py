"""``dcp-cloud show``"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from dcp_core.cli.arguments import Json, Place
from dcp_core.cli.output import console, mib, print_json, print_line, printable
from dcp_core.tools.places import open_checkpoint
from dcp_core.tools.tree import Node, leaves, tree

__all__ = ["show"]

#: Dtypes that a line names.
_NAMED = 3


def show(
    url: Place,
    *,
    depth: Annotated[
        int | None, typer.Option(help="Fold what is deeper than this many levels.", min=1, show_default=False)
    ] = None,
    under: Annotated[str, typer.Option(help="Only what is below this dotted name.", show_default=False)] = "",
    json: Json = False,
) -> int:
    """Show the tensors of a checkpoint as a tree of their dotted names: sizes, dtypes, chunks and ranks.

    A line with "/" stands for all that is below it. Exit code 1 if nothing is below the name of --under.
    """
    with open_checkpoint(url) as opened:
        found = (leaf for leaf in leaves(opened.metadata) if _is_under(leaf.name, under))
        root = tree(found)
    if json:
        rows = [_row(node) for node in root.folded(depth)]
        print_json({"url": url, **_counts(root), "rows": rows})
    else:
        console().print(_table(root, depth))
        ranks = f" of {len(root.ranks)} ranks" if root.ranks else ""
        print_line(f"{root.items} items in {root.chunks} chunks{ranks}, {mib(root.size)}")
    return 0 if root.items else 1


def _is_under(name: str, under: str) -> bool:
    return not under or name == under or name.startswith(f"{under.removesuffix('.')}.")


def _counts(node: Node) -> dict[str, Any]:
    return {
        "items": node.items,
        "bytes": node.size,
        "chunks": node.chunks,
        "ranks": sorted(node.ranks),
        "dtypes": sorted(node.dtypes),
    }


def _row(node: Node) -> dict[str, Any]:
    leaf = node.leaf
    return {
        "name": node.name,
        "depth": node.depth,
        "kind": "folder" if leaf is None else leaf.kind,
        "shape": None if leaf is None or leaf.shape is None else list(leaf.shape),
        **_counts(node),
    }


def _table(root: Node, depth: int | None) -> Table:
    table = Table(box=None)
    for name in ("name", "dtype", "shape", "size", "items", "chunks", "ranks"):
        table.add_column(name, justify="left" if name in ("name", "dtype", "shape") else "right")
    for node in root.folded(depth):
        table.add_row(*map(printable, _cells(node)))
    return table


def _cells(node: Node) -> tuple[str, ...]:
    leaf, only = node.leaf, node.leaf is not None and not node.children
    shape = "" if leaf is None or leaf.shape is None else str(list(leaf.shape))
    kind = "object" if leaf is not None and leaf.kind == "object" else _dtypes(node)
    return (
        "  " * node.depth + node.label + ("" if only else "/"),
        kind,
        shape,
        mib(node.size),
        "" if only else str(node.items),
        str(node.chunks),
        str(len(node.ranks) or ""),
    )


def _dtypes(node: Node) -> str:
    names = sorted(node.dtypes)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
