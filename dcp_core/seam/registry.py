"""Backends by URL scheme, found through entry points.

A distribution adds a cloud by naming a :class:`~dcp_core.seam.backend.Backend` instance in the entry-point
group ``dcp_core.backends``, one entry a scheme::

    [project.entry-points."dcp_core.backends"]
    s3 = "dcp_s3:backend"

Looking a scheme up reads installed metadata only; the module behind it is imported when a URL needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from dcp_core.errors import (
    AmbiguousSchemeError,
    ConfigurationError,
    MissingExtraError,
    UnknownSchemeError,
)
from dcp_core.seam.backend import Backend

__all__ = ["GROUP", "find_backend", "known_schemes"]

GROUP = "dcp_core.backends"

#: The extra that brings each scheme of ours, for the message when it is not there.
_EXTRAS: Mapping[str, str] = {
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "http": "http",
    "https": "http",
}


@dataclass(frozen=True)
class _Claim:
    entry: EntryPoint
    distribution: str


def _claims() -> dict[str, list[_Claim]]:
    """Entry points by scheme. One distribution seen twice on the path counts once."""
    claims: dict[str, dict[tuple[str, str], _Claim]] = {}
    for entry in entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist is not None else "an unnamed distribution"
        claims.setdefault(entry.name.lower(), {})[(distribution, entry.value)] = _Claim(entry, distribution)
    return {scheme: list(found.values()) for scheme, found in claims.items()}


def known_schemes() -> list[str]:
    """Schemes that an installed distribution claims, sorted."""
    return sorted(_claims())


def find_backend(scheme: str) -> Backend:
    """Import and return the backend for ``scheme``.

    Raises:
        UnknownSchemeError: nothing installed claims it; names what is known and what to install.
        AmbiguousSchemeError: several distributions claim it; names them.
        MissingExtraError: it is claimed, but importing it needs a package that is absent.
        ConfigurationError: the entry point does not name a :class:`Backend`.
    """
    claims = _claims()
    found = claims.get(scheme, [])
    if not found:
        raise UnknownSchemeError(_unknown(scheme, sorted(claims)))
    if len(found) > 1:
        names = ", ".join(sorted(f"{claim.distribution} ({claim.entry.value})" for claim in found))
        raise AmbiguousSchemeError(f"scheme {scheme!r} is claimed by {names}; uninstall all but one")
    return _load(scheme, found[0])


def _load(scheme: str, claim: _Claim) -> Backend:
    try:
        backend = claim.entry.load()
    except ImportError as error:
        raise MissingExtraError(
            f"{scheme}:// needs the package {error.name or error}: "
            f"{_install_hint(scheme, claim.distribution)}"
        ) from error
    if not isinstance(backend, Backend):
        raise ConfigurationError(
            f"entry point {claim.entry.value!r} of {claim.distribution} is not a dcp_core.seam Backend"
        )
    return backend


def _install_hint(scheme: str, distribution: str) -> str:
    if distribution == "dcp-cloud" and scheme in _EXTRAS:
        return f"pip install 'dcp-cloud[{_EXTRAS[scheme]}]'"
    return f"reinstall {distribution} with its dependencies"


def _unknown(scheme: str, known: list[str]) -> str:
    listed = ", ".join(f"{name}://" for name in known) or "none"
    hint = f"; pip install 'dcp-cloud[{_EXTRAS[scheme]}]' adds it" if scheme in _EXTRAS else ""
    return f"no installed backend serves {scheme}:// (known: {listed}){hint}"
