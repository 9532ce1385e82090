"""The SDK's client of one container, with its retries off.

Requests that carry data go through the SDK's pipeline as they are, because its methods for them read a body
into ``bytes`` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.storage.blob import ContainerClient
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from dcp_azure.account import Account
from dcp_azure.azure_private import run_pipeline
from dcp_azure.options import AzureOptions
from dcp_core.transport.pools import tuned_adapter

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
                connection_timeout=options.connect_seconds,
                read_timeout=options.stall_timeout,
                connection_verify=(options.ca_bundle or True) if options.verify_tls else False,
            ),
        )
        self._credential = account.credential
        #: Tokens are others each time; keys and signatures may have been replaced where they come from.
        self.credentials: object = object() if account.secret is None else account.secret
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
        """One request for one blob, and its response; with ``stream``, the body is left to read.

        Raises:
            HttpResponseError: another status than ``expected``.
        """
        request = HttpRequest(
            method,
            f"{self._url}/{quote(key, safe='/~')}{query}",
            headers={"x-ms-version": self.container.api_version, **headers},
            content=body,
        )
        response = run_pipeline(self.container, request, stream=stream)
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
    adapter = tuned_adapter(
        HTTPAdapter,
        options.stall_timeout,
        pool_maxsize=concurrency + 2,
        # off, as the SDK has it; a failure then has no URL in its text, and so no SAS
        max_retries=Retry(total=False, redirect=False, raise_on_status=False),
    )
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session
