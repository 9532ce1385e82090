"""The SDK's authorised session, set up for requests of ours.

google-cloud-storage finds the credentials and the endpoint, and its ``AuthorizedSession`` (requests and
urllib3) adds and renews the tokens. Requests repeat nothing: the core does. The one exception is a 401 to a
token that can be renewed: the store has refused the request before it looked at it, so it is sent again.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import google.auth
import requests
from google.api_core.client_info import ClientInfo
from google.auth.credentials import AnonymousCredentials, Credentials, CredentialsWithQuotaProject
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2.credentials import Credentials as UserCredentials
from urllib3.util.ssl_ import create_urllib3_context

from dcp_core.errors import CredentialsError
from dcp_core.store import Body
from dcp_core.store_http import tuned_pools
from dcp_gcs.options import GCSOptions

__all__ = ["Session"]


class Session:
    """Sends requests to one endpoint with one set of credentials. Thread-safe.

    Args:
        options: endpoint, credentials and time limits.
        concurrency: requests at a time; as many connections are kept open.

    Raises:
        google.auth.exceptions.GoogleAuthError: the SDK finds no credentials, or cannot use them.
        CredentialsError: those of the options cannot be used.
    """

    def __init__(self, options: GCSOptions, *, concurrency: int) -> None:
        # project=None: what is done here needs no project, and finding one may ask the metadata server
        client = storage.Client(
            project=None,
            credentials=_explicit_credentials(options),
            client_options={"api_endpoint": options.endpoint_url} if options.endpoint_url else None,
        )
        self.endpoint: str = client.api_endpoint.rstrip("/")
        credentials: Credentials = client._credentials
        # otherwise a quota project that comes with the credentials would replace the one asked for
        if options.user_project and isinstance(credentials, CredentialsWithQuotaProject):
            credentials = credentials.with_quota_project(options.user_project)
        self._http = _authorised(credentials, options, concurrency)
        self._timeout = (options.connect_timeout, options.stall_timeout)
        # given with each request: the session's own setting yields to REQUESTS_CA_BUNDLE
        self._verify: bool | str = (options.ca_bundle or True) if options.verify_tls else False

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: Body | bytes | None = None,
        stream: bool = False,
        stall_timeout: float | None = None,
    ) -> requests.Response:
        """Send one request; ``path`` is encoded already. With ``stream`` the answer's body is left unread.

        Raises:
            requests.HTTPError: the answer is not a success.
            requests.RequestException: there was no whole answer.
        """
        if isinstance(body, Body) and body.size == 0:
            body = None
        connect, stall = self._timeout
        answer: requests.Response = self._http.request(
            method,
            self.endpoint + path,
            data=body,
            headers=headers,
            timeout=(connect, stall_timeout or stall),
            verify=self._verify,
            stream=stream,
            allow_redirects=False,
        )
        if answer.status_code >= 300:
            # read here, where a connection that breaks meanwhile is an error of the request like any other
            _ = answer.content
            raise requests.HTTPError(response=answer)
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class _RewindingSession(AuthorizedSession):  # type: ignore[misc]  # google-auth has no types
    """Sends a body from its start also when the session repeats the request after a 401."""

    def request(self, method: str, url: str, data: Any = None, **options: Any) -> requests.Response:
        if isinstance(data, Body):
            data.seek(0)
        answer: requests.Response = super().request(method, url, data=data, **options)
        return answer


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections that repeat nothing and send and receive as we need it."""

    def __init__(self, stall_timeout: float, connections: int) -> None:
        self._stall_timeout = stall_timeout
        super().__init__(pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = tuned_pools(
            pools, self._stall_timeout, create_urllib3_context
        )


def _authorised(credentials: Credentials, options: GCSOptions, concurrency: int) -> AuthorizedSession:
    # these have nothing to renew a token with, and would fail in an attempt to
    fixed = isinstance(credentials, AnonymousCredentials) or options.access_token is not None
    session = _RewindingSession(
        credentials, refresh_status_codes=() if fixed else (401,), max_refresh_attempts=1
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(options.stall_timeout, concurrency + 2))
    session.configure_mtls_channel()
    # the bytes as they are stored: no compression on the way
    session.headers["Accept-Encoding"] = "identity"
    session.headers["User-Agent"] = ClientInfo(user_agent="dcp-cloud").to_user_agent()
    return session


def _explicit_credentials(options: GCSOptions) -> Credentials | None:
    """Credentials that the options name; ``None`` leaves it to the SDK to find some."""
    if options.anonymous:
        return AnonymousCredentials()
    if options.access_token is not None:
        return UserCredentials(options.access_token)
    if options.credentials_file is None:
        return None
    return _from_file(options.credentials_file)


def _from_file(path: str) -> Credentials:
    try:
        with open(path, encoding="utf-8") as file, warnings.catch_warnings():
            # it warns of credentials from strangers; these the user names
            warnings.simplefilter("ignore", DeprecationWarning)
            credentials, _ = google.auth.load_credentials_from_dict(
                json.load(file), scopes=storage.Client.SCOPE
            )
    except (OSError, ValueError, GoogleAuthError) as error:
        raise CredentialsError(f"credentials_file={path!r} cannot be used: {error}") from error
    return credentials
