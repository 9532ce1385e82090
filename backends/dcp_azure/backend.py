"""What the entry points ``az``, ``abfs`` and ``abfss`` name."""

from __future__ import annotations

import re
from typing import Any

from dcp_azure.options import AzureOptions
from dcp_azure.store import AzureStore
from dcp_core.errors import InvalidLocationError
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore

__all__ = ["AzureBackend"]

#: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
#: Hosts of Azure's clouds only: a login's token goes to the host that the URL names.
_ACCOUNT_HOST = re.compile(
    r"(?P<account>[a-z0-9]{3,24}(?:\.z\d+)?)\.(?:dfs|blob)"
    r"\.(?P<cloud>core\.windows\.net|core\.usgovcloudapi\.net|core\.chinacloudapi\.cn|storage\.azure\.net)"
)
#: Characters, says the same page.
_LONGEST_KEY = 1024


class AzureBackend(Backend):
    """Azure Blob Storage."""

    options_type: type[Any] = AzureOptions

    def locate(self, url: str) -> Location:
        """Parse ``az://container/prefix`` or ``abfs[s]://container@account.dfs.core.windows.net/prefix``.

        Raises:
            InvalidLocationError: not a URL, not a container or account name, or a prefix that cannot be
                part of a blob's name.
        """
        location = Location.parse(url)
        container, _ = _split(location)
        if not _CONTAINER.fullmatch(container):
            raise InvalidLocationError(
                f"{container!r} in {url!r} is not a valid Azure container name: 3 to 63 lower-case letters, "
                "digits and single hyphens"
            )
        location.check_prefix("Azure", _LONGEST_KEY, "characters")
        if {".", ".."} & set(location.prefix.split("/")):
            raise InvalidLocationError(
                f"{url!r} has a '.' or '..' in its prefix, which HTTP clients and servers resolve away"
            )
        if "\\" in location.prefix:
            raise InvalidLocationError(
                f"{url!r} has a backslash in its prefix, which Azure turns into a slash"
            )
        return location

    def open(self, location: Location, options: AzureOptions, *, concurrency: int) -> ObjectStore:
        """Open the container of ``location``."""
        container, endpoint = _split(location)
        return AzureStore(container, options, endpoint=endpoint, concurrency=concurrency)


def _split(location: Location) -> tuple[str, str | None]:
    """The container, and the blob endpoint where the URL names the account.

    Data Lake accounts serve their blobs at ``account.blob.…`` too, with the block lists that uploads need and
    the ``dfs`` endpoint lacks.
    """
    container, at, host = location.bucket.partition("@")
    if location.scheme == "az":
        if at:
            raise InvalidLocationError(
                f"{location.url!r} names an account: use az://container/prefix with account=, or "
                "abfss://container@account.dfs.core.windows.net/prefix"
            )
        return container, None
    match = _ACCOUNT_HOST.fullmatch(host)
    if match is None:
        raise InvalidLocationError(
            f"{location.url!r} names no storage account: expected "
            f"{location.scheme}://container@account.dfs.core.windows.net/prefix; for other hosts, "
            "az://container/prefix with account_url="
        )
    return container, f"https://{match['account']}.blob.{match['cloud']}"
