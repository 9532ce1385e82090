"""Writer and reader with Azure's own options spelled out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dcp_azure.backend import AzureBackend
from dcp_core.reader import CloudStorageReader
from dcp_core.writer import CloudStorageWriter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dcp_azure.keywords import AzureLoadKeywords, AzureSaveKeywords

__all__ = ["AzureStorageReader", "AzureStorageWriter"]


class AzureStorageWriter(CloudStorageWriter):
    """Saves DCP checkpoints to Azure Blob Storage.

    Args:
        url: ``az://container/prefix`` or ``abfs[s]://container@account.dfs.core.windows.net/prefix``.
        **options: fields of :class:`~dcp_core.config.SaveOptions` and
            :class:`~dcp_azure.options.AzureOptions`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[AzureSaveKeywords]) -> None:
        self._set_up(url, dict(options), AzureBackend())


class AzureStorageReader(CloudStorageReader):
    """Loads DCP checkpoints from Azure Blob Storage.

    Args:
        url: ``az://container/prefix`` or ``abfs[s]://container@account.dfs.core.windows.net/prefix``.
        **options: fields of :class:`~dcp_core.config.LoadOptions` and
            :class:`~dcp_azure.options.AzureOptions`.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Unpack[AzureLoadKeywords]) -> None:
        self._set_up(url, dict(options), AzureBackend())
