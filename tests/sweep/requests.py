"""Requests by name: what is asked of which object, whoever asks and when.

Two ranks send their requests in any order, and each save gives its objects new names. A request is therefore
known by its operation, the object without its token, the part or the range, and by how many of the same came
before it. So a point of the sweep is the same in every run.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from dcp_faults import Fault, Seen

__all__ = ["AtRequest", "Request", "name_of", "requests_in"]

#: Data objects and commit records, as they are called in paths and queries.
_OBJECT = re.compile(r"(__\d+_\d+)\.[0-9a-f]{16}\.distcp|(\.metadata)")


@dataclass(frozen=True, order=True)
class Request:
    """One request of a save or load.

    Attributes:
        name: see :func:`name_of`.
        earlier: requests of this name that came before it.
        bytes_in, bytes_out: of its body and that of its response, where nothing is broken.
    """

    name: str
    earlier: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def __str__(self) -> str:
        return self.name if not self.earlier else f"{self.name} ({self.earlier + 1})"


def name_of(seen: Seen) -> str:
    """Operation, object, part and range, as far as there are any."""
    words = (seen.operation, _object(seen), _part(seen), _range(seen))
    return " ".join(word for word in words if word)


def requests_in(seen: Iterable[Seen]) -> list[Request]:
    """Requests that came by, in the order of their names."""
    counts: Counter[str] = Counter()
    found = []
    for one in seen:
        name = name_of(one)
        found.append(Request(name, counts[name], one.bytes_in, one.bytes_out))
        counts[name] += 1
    return sorted(found)


def _object(seen: Seen) -> str:
    found = _OBJECT.search(unquote(seen.path)) or _OBJECT.search(unquote(seen.query))
    return "" if found is None else found[1] or found[2]


def _part(seen: Seen) -> str:
    query = dict(parse_qsl(seen.query))
    if "partNumber" in query:
        return f"part {query['partNumber']}"
    if "blockid" in query:
        return f"part {int(base64.b64decode(query['blockid'])[-5:])}"
    return ""


def _range(seen: Seen) -> str:
    headers = {name.lower(): value for name, value in seen.headers.items()}
    return headers.get("x-ms-range") or headers.get("range") or ""


@dataclass
class AtRequest(Fault):
    """A fault at the requests of one name, with ``skip`` and ``times`` as ever."""

    name: str = ""

    def matches(self, request: Seen) -> bool:
        return (self.spreads and self.began is not None) or name_of(request) == self.name
