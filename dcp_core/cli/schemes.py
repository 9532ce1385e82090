"""``dcp-cloud schemes``"""

from __future__ import annotations

from dcp_core.cli.arguments import Json
from dcp_core.cli.output import print_json, print_line
from dcp_core.seam.registry import known_schemes

__all__ = ["schemes"]


def schemes(*, json: Json = False) -> None:
    """URL schemes that the installed backends serve."""
    known = known_schemes()
    if json:
        print_json(known)
        return
    for scheme in known:
        print_line(f"{scheme}://")
