"""The SDK's authorised session, set up for this backend's requests.

google-cloud-storage finds the credentials and the endpoint, and its ``AuthorizedSession`` (requests and
urllib3) adds and renews the tokens. Requests repeat nothing: the core does. The one exception is a 401 to a
token that can be renewed: the store has refused the request before it looked at it, so it is sent again.
"""

from __future__ import annotations

import json
import os
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
from requests.adapters import HTTPAdapter

from dcp_core.errors import CredentialsError
from dcp_core.seam.body import Body, BodyReader
from dcp_core.transport.cloud_store import only_given
from dcp_core.transport.pools import tune_pools, tuned_adapter
from dcp_gcs.google_private import credentials_of
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
        client = storage.Client(
            # what is done here needs no project, and finding one may ask the metadata server
            project=None,
            credentials=_explicit_credentials(options),
            client_options=only_given(
                {
                    "api_endpoint": options.endpoint_url,
                    # the SDK's other clients read it, this one does not
                    "universe_domain": os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN") or None,
                }
            ),
        )
        credentials: Credentials = credentials_of(client)
        # otherwise a quota project that comes with the credentials would replace the one asked for
        if options.user_project and isinstance(credentials, CredentialsWithQuotaProject):
            credentials = credentials.with_quota_project(options.user_project)
        #: Those that can be renewed are others each time.
        self.credentials: object = _fixed(credentials, options) or object()
        self._http = _authorised(credentials, options, concurrency)
        self.endpoint = _endpoint(client.api_endpoint.rstrip("/"), self._http.is_mtls)
        self._timeout = (options.connect_seconds, options.stall_timeout)
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
        """Send one request; ``path`` is encoded already. With ``stream`` the response's body is left unread.

        Raises:
            requests.HTTPError: the response is not a success.
            requests.RequestException: there was no whole response.
        """
        connect, stall = self._timeout
        if isinstance(body, Body):
            data: BodyReader | bytes | None = body.open() if body.size else None
        else:
            data = body
        response: requests.Response = self._http.request(
            method,
            self.endpoint + path,
            data=data,
            headers=headers,
            timeout=(connect, stall_timeout or stall),
            verify=self._verify,
            stream=stream,
            allow_redirects=False,
        )
        if response.status_code >= 300:
            # read here, where a connection that breaks meanwhile is an error of the request like any other
            _ = response.content
            raise requests.HTTPError(response=response)
        return response

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class _RewindingSession(AuthorizedSession):  # type: ignore[misc]  # google-auth has no types
    """Sends a body from its start also when the session repeats the request after a 401."""

    def request(self, method: str, url: str, data: Any = None, **options: Any) -> requests.Response:
        if isinstance(data, BodyReader):
            data.seek(0)
        response: requests.Response = super().request(method, url, data=data, **options)
        return response


def _authorised(credentials: Credentials, options: GCSOptions, concurrency: int) -> AuthorizedSession:
    fixed = _fixed(credentials, options) is not None
    session = _RewindingSession(
        credentials, refresh_status_codes=() if fixed else (401,), max_refresh_attempts=1
    )
    for scheme in ("https://", "http://"):
        pool = {"pool_maxsize": concurrency + 2, "max_retries": 0}
        session.mount(scheme, tuned_adapter(HTTPAdapter, options.stall_timeout, **pool))
    session.configure_mtls_channel()
    if session.is_mtls:
        # it has replaced the adapter
        tune_pools(session.adapters["https://"].poolmanager, options.stall_timeout)
    # the bytes as they are stored: no compression on the way
    session.headers["Accept-Encoding"] = "identity"
    session.headers["User-Agent"] = ClientInfo(user_agent="dcp-cloud").to_user_agent()
    return session


def _fixed(credentials: Credentials, options: GCSOptions) -> str | None:
    """What credentials are that have nothing to renew a token with, and would fail in an attempt to."""
    return "nobody" if isinstance(credentials, AnonymousCredentials) else options.access_token


def _endpoint(found: str, with_certificate: bool) -> str:
    """Google's own endpoint in the form for client certificates, where one is sent or the user wants it.

    https://google.aip.dev/auth/4114
    """
    wanted = os.environ.get("GOOGLE_API_USE_MTLS_ENDPOINT", "auto")
    if found == "https://storage.googleapis.com" and (
        wanted == "always" or (wanted == "auto" and with_certificate)
    ):
        return "https://storage.mtls.googleapis.com"
    return found


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
