"""Who may do what in the gateway to Google's emulator, which asks nobody for anything.

- Service accounts get access tokens for signed assertions, as from Google's token server:
  https://developers.google.com/identity/protocols/oauth2/service-account. Assertions are really verified:
  signature, audience, and a clock that is right within minutes. Tokens expire and can be revoked.
- A bucket has an IAM policy (https://docs.cloud.google.com/storage/docs/json_api/v1/buckets/setIamPolicy)
  of the roles below (https://docs.cloud.google.com/storage/docs/access-control/iam-roles). Without one it is
  open to everybody, as emulators are.

Not modelled: HMAC keys, ACLs, conditions in policies, access to buckets as such, and that a caller who may
not list gets a 403 rather than a 404 for a missing object.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from google.auth import exceptions, jwt

_READ = {"storage.objects.get", "storage.objects.list"}
_CREATE = {
    "storage.objects.create",
    "storage.multipartUploads.create",
    "storage.multipartUploads.abort",
    "storage.multipartUploads.listParts",
}
_ALL = _READ | _CREATE | {"storage.objects.delete", "storage.multipartUploads.list"}
_ROLES = {
    "roles/storage.admin": _ALL,
    "roles/storage.objectAdmin": _ALL,
    "roles/storage.objectUser": _ALL,
    "roles/storage.objectViewer": _READ,
    "roles/storage.objectCreator": _CREATE,
}
_OPEN = {"bindings": [{"role": "roles/storage.admin", "members": ["allUsers"]}]}

#: What the SDKs sign assertions for, whatever the ``token_uri`` of a key file.
_AUDIENCE = "https://oauth2.googleapis.com/token"
TOKEN_SECONDS = 3600


class Refused(Exception):
    """A request that may not go on: ``status`` is 401 or 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Access:
    """Tokens and policies.

    Args:
        accounts: public key (PEM) of each service account, by e-mail address.
    """

    def __init__(self, accounts: dict[str, str]) -> None:
        self._accounts = accounts
        self._tokens: dict[str, tuple[str, float]] = {}
        self._policies: dict[str, dict[str, Any]] = {}

    def token_for(self, assertion: str) -> dict[str, Any]:
        """The response to a token request; raises ``ValueError`` where Google's is ``invalid_grant``."""
        email = str(jwt.decode(assertion, verify=False).get("iss"))
        if email not in self._accounts:
            raise ValueError("Invalid grant: account not found")
        try:
            jwt.decode(assertion, certs=self._accounts[email], audience=_AUDIENCE)
        except exceptions.GoogleAuthError as error:
            raise ValueError(f"Invalid JWT: {error}") from error
        token = secrets.token_urlsafe(32)
        self._tokens[token] = (email, time.time() + TOKEN_SECONDS)
        return {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}

    def revoke(self, token: str) -> None:
        self._tokens.pop(token, None)

    def policy(self, bucket: str) -> dict[str, Any]:
        return self._policies.get(bucket, _OPEN)

    def set_policy(self, bucket: str, policy: dict[str, Any]) -> None:
        self._policies[bucket] = policy

    def check(self, bucket: str, permission: str, authorization: str | None) -> None:
        """Raise :class:`Refused` unless the caller has the permission."""
        member, shown = self._caller(authorization)
        for binding in self.policy(bucket).get("bindings", ()):
            allowed = permission in _ROLES.get(binding["role"], ())
            if allowed and ("allUsers" in binding["members"] or member in binding["members"]):
                return
        raise Refused(403, f"{shown} does not have {permission} access to the Google Cloud Storage bucket.")

    def _caller(self, authorization: str | None) -> tuple[str, str]:
        if authorization is None:
            return "allUsers", "Anonymous caller"
        kind, _, token = authorization.partition(" ")
        email, ends_at = self._tokens.get(token, ("", 0.0))
        if kind != "Bearer" or time.time() >= ends_at:
            raise Refused(401, "Invalid Credentials")
        return f"serviceAccount:{email}", email
