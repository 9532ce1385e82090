"""Whether a session without credentials is one that nobody configured, or one whose provider failed.

botocore asks every provider in turn and ends in ``None`` either way. Asking again is worth while only where a
provider is there: an instance metadata service that responds to some of its clients with errors, or too late.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import urllib3
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError
from botocore.utils import InstanceMetadataFetcher, resolve_imds_endpoint_mode

__all__ = ["METADATA_SERVICE", "require_credentials"]

#: The provider, as botocore names it.
METADATA_SERVICE = "iam-role"
#: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html
_DMI = Path("/sys/devices/virtual/dmi/id")


def require_credentials(session: Any) -> object:
    """Look for credentials; returns what tells them from others.

    Raises:
        NoCredentialsError: nothing that could give any is configured.
        CredentialRetrievalError: the instance metadata service ought to have given some.
        botocore.exceptions.BotoCoreError: another provider failed.
    """
    found = session.get_credentials()
    if found is not None:
        # those that renew themselves are others each time
        renewable = hasattr(found, "refresh_needed")
        return object() if renewable else (found.access_key, found.secret_key, found.token)
    failure = _metadata_service_failure(session)
    if failure is None:
        raise NoCredentialsError
    raise CredentialRetrievalError(provider=METADATA_SERVICE, error_msg=failure)


def _metadata_service_failure(session: Any) -> str | None:
    """Why the metadata service gave none, if it is there; a host without a role is told so by it."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = session.get_config_variable("ec2_metadata_service_endpoint")
    if endpoint is None and not _on_ec2():
        return None
    config = {
        "ec2_metadata_service_endpoint": endpoint,
        "ec2_metadata_service_endpoint_mode": resolve_imds_endpoint_mode(session),
    }
    timeout = session.get_config_variable("metadata_service_timeout")
    try:
        token, role = _ask_for_role(InstanceMetadataFetcher(config=config).get_base_url(), timeout)
    except urllib3.exceptions.HTTPError as error:
        return f"the instance metadata service cannot be reached: {error}"
    if role == 404 and token < 500:
        return None
    return f"the instance metadata service responds with {token} to a token's request, {role} to the role's"


def _ask_for_role(base: str, timeout: float) -> tuple[int, int]:
    """The statuses of the two requests by which an instance learns its role.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """
    with urllib3.PoolManager(timeout=timeout, retries=False) as http:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = http.request("PUT", urljoin(base, "/latest/api/token"), headers=wanted)
        sent = {"X-aws-ec2-metadata-token": token.data.decode("latin-1")} if token.status == 200 else {}
        path = "/latest/meta-data/iam/security-credentials/"
        return token.status, http.request("GET", urljoin(base, path), headers=sent).status


def _on_ec2() -> bool:
    for name in ("sys_vendor", "bios_version"):
        try:
            if "amazon" in (_DMI / name).read_text().lower():
                return True
        except OSError:
            continue
    return False
