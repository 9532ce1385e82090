"""DCP storage on Azure Blob Storage and Azure Data Lake Storage Gen2.

::

    from dcp_azure import AzureStorageWriter

    AzureStorageWriter("az://container/run/step-1000", account="myaccount", access_tier="Cool")
    AzureStorageWriter("abfss://container@myaccount.dfs.core.windows.net/run/step-1000")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcp_azure.backend import AzureBackend
from dcp_azure.options import AzureOptions
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from dcp_azure.options import AzureLoadKeywords, AzureSaveKeywords

__all__ = ["AzureOptions", "AzureStorageReader", "AzureStorageWriter", "backend"]

backend = AzureBackend()


class AzureStorageWriter(CloudStorageWriter):
    """A :class:`~dcp_core.CloudStorageWriter` that saves to ``az://`` and ``abfs[s]://`` URLs.

    Its options are those of :class:`~dcp_core.SaveOptions` and of :class:`AzureOptions`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[AzureSaveKeywords]) -> None: ...


class AzureStorageReader(CloudStorageReader):
    """A :class:`~dcp_core.CloudStorageReader` that loads from ``az://`` and ``abfs[s]://`` URLs.

    Its options are those of :class:`~dcp_core.LoadOptions` and of :class:`AzureOptions`.
    """

    backend = backend

    if TYPE_CHECKING:

        def __init__(self, url: str | os.PathLike[str], **options: Unpack[AzureLoadKeywords]) -> None: ...
