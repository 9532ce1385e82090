"""DCP storage on Azure Blob Storage and Azure Data Lake Storage Gen2.

::

    from dcp_azure import AzureStorageWriter

    AzureStorageWriter("az://container/run/step-1000", account="myaccount", access_tier="Cool")
    AzureStorageWriter("abfss://container@myaccount.dfs.core.windows.net/run/step-1000")
"""

from dcp_azure.backend import AzureBackend
from dcp_azure.dcp import AzureStorageReader, AzureStorageWriter
from dcp_azure.options import AzureOptions

__all__ = ["AzureOptions", "AzureStorageReader", "AzureStorageWriter", "backend"]

backend = AzureBackend()
