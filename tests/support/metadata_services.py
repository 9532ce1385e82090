"""The services that give credentials to machines of the clouds, as real HTTP servers that can fail.

- :class:`InstanceMetadata`: EC2's, https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
- :class:`ContainerCredentials`: that of ECS and EKS, which a variable names
- :class:`GoogleMetadata`: https://docs.cloud.google.com/compute/docs/metadata/overview
- :class:`ManagedIdentity`: that of Azure's App Service, which variables name
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = ["ContainerCredentials", "GoogleMetadata", "InstanceMetadata", "ManagedIdentity", "MetadataService"]

ALWAYS = 1 << 30


class MetadataService:
    """A service on a thread of its own.

    Args:
        port: to listen on; any if 0.

    Attributes:
        failures: requests to be refused before one is served, with ``failure`` as the status.
        seen: paths of the requests, in order.
        documents: how often credentials were given.
    """

    def __init__(self, port: int = 0) -> None:
        self.failures, self.failure = 0, 503
        self.seen: list[str] = []
        self.documents = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            service = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metadata", daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that lead an SDK to it."""
        raise NotImplementedError

    def serve(self, path: str) -> tuple[int, object]:
        """Status and body: text, or a document."""
        raise NotImplementedError

    def respond(self, path: str) -> tuple[int, object]:
        with self._lock:
            self.seen.append(path)
            if self.failures:
                self.failures -= 1
                return self.failure, ""
            return self.serve(path)

    def __enter__(self) -> MetadataService:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    service: MetadataService

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.service.respond(urlsplit(self.path).path)
        plain = isinstance(content, str)
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/text" if plain else "application/json")
        # Google's clients take nothing for their metadata server that lacks it
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = _serve


class _AmazonService(MetadataService):
    """Gives the keys of a server, which end in ``lifetime`` seconds."""

    def __init__(
        self, access_key: str, secret_key: str, *, lifetime: float = 6 * 3600, port: int = 0
    ) -> None:
        super().__init__(port)
        self.keys = (access_key, secret_key)
        self.lifetime = lifetime

    def _document(self) -> dict[str, str]:
        self.documents += 1
        now = datetime.datetime.now(datetime.timezone.utc)
        written, ends = (
            (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
            for seconds in (0, self.lifetime)
        )
        access_key, secret_key = self.keys
        # the servers of the tests know no session tokens, so it is an empty one
        keys = {"AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": ""}
        return {"Code": "Success", **keys, "Expiration": ends, "LastUpdated": written}


class InstanceMetadata(_AmazonService):
    """Attributes: ``role``, whether the instance has one."""

    role = True

    def environment(self) -> dict[str, str]:
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.host}",
            "AWS_EC2_METADATA_DISABLED": "false",
        }

    def serve(self, path: str) -> tuple[int, object]:
        roles = "/latest/meta-data/iam/security-credentials/"
        if path == "/latest/api/token":
            return 200, "token"
        if not self.role or not path.startswith(roles):
            return 404, ""
        return 200, "training" if path == roles else self._document()


class ContainerCredentials(_AmazonService):
    def environment(self) -> dict[str, str]:
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{self.host}/credentials"}

    def serve(self, path: str) -> tuple[int, object]:
        return 200, self._document()


class GoogleMetadata(MetadataService):
    """Args: ``token`` makes an access token for each request for one.

    Attributes: ``token_status`` of requests for a token.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        super().__init__()
        self._token = token
        self.token_status = 200

    def environment(self) -> dict[str, str]:
        return {"GCE_METADATA_HOST": self.host, "GCE_METADATA_IP": self.host, "NO_GCE_CHECK": "false"}

    def serve(self, path: str) -> tuple[int, object]:
        of_account = "/computeMetadata/v1/instance/service-accounts/default/"
        if path == f"{of_account}token":
            if self.token_status != 200:
                return self.token_status, "no token"
            self.documents += 1
            return 200, {"access_token": self._token(), "expires_in": 3600, "token_type": "Bearer"}
        if path == of_account:
            return 200, {"email": "default", "aliases": ["default"], "scopes": []}
        return 200, "googleapis.com" if path.endswith("universe-domain") else "project"


class ManagedIdentity(MetadataService):
    """Args: ``token`` makes an access token for each request for one."""

    def __init__(self, token: Callable[[], str]) -> None:
        super().__init__()
        self._token = token

    def environment(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": f"http://{self.host}/msi/token", "IDENTITY_HEADER": "secret"}

    def serve(self, path: str) -> tuple[int, object]:
        self.documents += 1
        ends = str(int(time.time()) + 3600)
        what = {"resource": "https://storage.azure.com", "token_type": "Bearer"}
        return 200, {"access_token": self._token(), "expires_on": ends, **what}
