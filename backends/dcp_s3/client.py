"""The SDK's client, with its retries off."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore import UNSIGNED, xform_name
from botocore.config import Config
from botocore.configprovider import DefaultConfigResolver
from botocore.parsers import ResponseParserError

from dcp_core.config import CONNECT_TIMEOUT
from dcp_s3.botocore_private import limit_stalled_sends, refuse_other_documents
from dcp_s3.credentials import require_credentials
from dcp_s3.options import S3Options

__all__ = ["S3Client", "open_client"]


@dataclass(frozen=True)
class S3Client:
    """The SDK's client, and what it signs with."""

    sdk: Any
    credentials: object

    def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One request, named as in the API."""
        found: dict[str, Any] = getattr(self.sdk, xform_name(operation))(**parameters)
        return found

    def close(self) -> None:
        self.sdk.close()


def open_client(options: S3Options, concurrency: int) -> S3Client:
    """A client for ``concurrency`` requests at a time.

    Raises:
        botocore.exceptions.BotoCoreError: the configuration cannot be used, or there are no credentials.
    """
    core = _core_session()
    session = boto3.Session(
        botocore_session=core,
        profile_name=options.profile,
        region_name=options.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
    )
    credentials = None if options.anonymous else require_credentials(core)
    # the SDK insists on a region even where an endpoint makes it meaningless
    region = session.region_name or ("us-east-1" if options.endpoint_url else None)
    # The SDK sends parts with "Expect: 100-continue". It costs a round trip a part, and lets a store refuse
    # with a 403 or 503 before the part is sent, rather than by breaking the connection in the middle of it.
    client = session.client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint_url,
        verify=options.ca_bundle if options.verify_tls else False,
        config=Config(**_settings(options, core), max_pool_connections=concurrency + 2),
    )
    refuse_other_documents(client)
    # before the SDK's own handler, which decodes the keys of entries whether they have one or not
    client.meta.events.register_first("after-call.s3.ListObjectsV2", _require_names)
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    limit_stalled_sends(client, options.stall_timeout)
    return S3Client(client, credentials)


def _require_names(parsed: Mapping[str, Any], **event: Any) -> None:
    """Refuse a list with an entry that names nothing."""
    del event
    for entries, name in (("Contents", "Key"), ("CommonPrefixes", "Prefix")):
        if not all(entry.get(name) for entry in parsed.get(entries) or ()):
            raise ResponseParserError(f"an entry of {entries} has no {name}")


def _add_content_md5(params: dict[str, Any], **event: Any) -> None:
    """What stores want that know none of the newer checksums, which the SDK sends since botocore 1.36."""
    del event
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _settings(options: S3Options, session: Any) -> dict[str, Any]:
    """Settings of the client. Of those that the SDK can be configured with, only what is given, or needed.

    One overrides the shared configuration: the SDK's retries are off. The core retries, which can tell a
    repeated conditional write from a lost race (docs/decisions/0003).
    """
    settings = {
        **_unless_configured(
            session,
            tcp_keepalive=True,
            # every body carries a CRC32C already; anything else would read it once more
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
        "connect_timeout": options.connect_timeout or _connect_timeout(session),
        "read_timeout": options.stall_timeout,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    if options.anonymous:
        settings["signature_version"] = UNSIGNED
    # the checksum vouches for the payload, over TLS or not
    s3: dict[str, Any] = {"payload_signing_enabled": False, **(session.get_config_variable("s3") or {})}
    if options.addressing_style is not None:
        s3["addressing_style"] = options.addressing_style
    return {**settings, "s3": s3}


def _unless_configured(session: Any, **defaults: Any) -> dict[str, Any]:
    """The ``defaults`` of settings that neither the environment nor the shared configuration has."""
    places = {name: session.session_var_map[name][:2] for name in defaults}
    configured = {
        name
        for name, (known, variable) in places.items()
        if variable in os.environ or known in session.get_scoped_config()
    }
    return {name: value for name, value in defaults.items() if name not in configured}


def _connect_timeout(session: Any) -> float:
    """Seconds: those of the mode that ``AWS_DEFAULTS_MODE`` sets, which the SDK forgets beside others.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-smart-config-defaults.html
    """
    mode = session.get_config_variable("defaults_mode").lower()
    if mode == "legacy":
        return CONNECT_TIMEOUT
    modes = session.get_component("data_loader").load_data("sdk-default-configuration")
    # which region this machine is in is not looked up for it
    values = DefaultConfigResolver(modes).get_default_config_values("standard" if mode == "auto" else mode)
    return float(values["connectTimeoutInMillis"]) / 1000


def _core_session() -> Any:
    """A new session each time (the environment may change) that reuses the parsed service models.

    Parsing the models of S3 takes 50 of the 60 CPU milliseconds that a client costs.
    """
    session = botocore.session.Session()
    session.register_component("data_loader", _service_models(session.get_config_variable("data_path")))
    return session


@cache
def _service_models(path: str | None) -> Any:
    return botocore.loaders.create_loader(path)
