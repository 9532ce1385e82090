"""The SDK's client of one container, with its retries off.

Requests that carry data go through the SDK's pipeline as they are, because its methods for them read a body
into ``bytes`` first. The pipeline signs, adds dates and ids, and is where its own methods end too.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.storage.blob import ContainerClient
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.util.retry import Retry
from urllib3.util.ssl_ import create_urllib3_context

from dcp_azure.account import Account
from dcp_azure.options import AzureOptions
from dcp_core.store_http import tuned_pools

__all__ = ["AzureClient"]


class AzureClient:
    """Sends single requests to one container."""

    def __init__(self, container: str, account: Account, options: AzureOptions, concurrency: int) -> None:
        self.container: Any = ContainerClient(
            account.endpoint,
            container,
            credential=account.credential,
            # the SDK's default is 3 more attempts, the first of them after 15 seconds
            retry_total=0,
            transport=RequestsTransport(
                session=_session(options, concurrency),
                connection_timeout=options.connect_timeout,
                read_timeout=options.stall_timeout,
                connection_verify=(options.ca_bundle or True) if options.verify_tls else False,
            ),
        )
        self._credential = account.credential
        self._url: str = self.container.primary_endpoint

    def send(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        *,
        query: str = "",
        body: Any = None,
        expected: tuple[int, ...],
        stream: bool = False,
    ) -> Any:
        """One request for one blob, and its answer; with ``stream``, the answer's body is left to read.

        Raises:
            HttpResponseError: another status than ``expected``.
        """
        request = HttpRequest(
            method,
            f"{self._url}/{quote(key, safe='/~')}{query}",
            headers={"x-ms-version": self.container.api_version, **headers},
            content=body,
        )
        response = self.container._pipeline.run(request, stream=stream).http_response
        if response.status_code not in expected:
            if stream:
                response.read()
            raise HttpResponseError(response=response)
        return response

    def close(self) -> None:
        self.container.close()
        if hasattr(self._credential, "close"):
            self._credential.close()


def _session(options: AzureOptions, concurrency: int) -> requests.Session:
    """A session that keeps a connection for each request at a time; the SDK's own keeps 10."""
    session = requests.Session()
    adapter = _Adapter(
        options.stall_timeout,
        pool_maxsize=concurrency + 2,
        # off, as the SDK has it; a failure then has no URL in its text, and so no SAS
        max_retries=Retry(total=False, redirect=False, raise_on_status=False),
    )
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class _Adapter(HTTPAdapter):
    """Connections that are kept alive, and send and receive as we need it."""

    def __init__(self, stall_timeout: float, **options: Any) -> None:
        self._stall_timeout = stall_timeout
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        super().init_poolmanager(
            *args, **kwargs, socket_options=[*HTTPConnection.default_socket_options, alive]
        )
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = tuned_pools(
            pools, self._stall_timeout, create_urllib3_context
        )
