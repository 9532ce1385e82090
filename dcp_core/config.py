"""Options of the core. A backend has its own (``dcp_s3.S3Options``)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypedDict, TypeVar

from dcp_core.errors import ConfigurationError

__all__ = [
    "BucketKeywords",
    "BucketOptions",
    "CONNECT_TIMEOUT",
    "GIB",
    "KIB",
    "MIB",
    "ConnectionKeywords",
    "ConnectionOptions",
    "LoadKeywords",
    "LoadOptions",
    "Renamed",
    "SaveKeywords",
    "SaveOptions",
    "build_options",
]

#: Seconds to wait for a connection, where nothing else is said.
CONNECT_TIMEOUT = 10.0
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
#: What a store's limits are (``dcp_core.seam.store.Limits``).
LIMITS = frozenset({"min_part_size", "max_part_size", "max_parts", "max_object_size", "max_put_size"})

_T = TypeVar("_T")


class Renamed(NamedTuple):
    """What an option is called now, and its value there for a value of before."""

    name: str
    values: Mapping[Any, Any] = MappingProxyType({})


class Foreign(NamedTuple):
    """A keyword of torch's own writer or reader that is no option here.

    Attributes:
        advice: what to do instead.
        same: names of the values that ask for what is done anyway, and are accepted.
    """

    advice: str
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class TransferOptions:
    """What saving and loading share.

    Attributes:
        concurrency: requests in flight at most, for this rank. 8 suits 8 ranks on a node.
        memory_limit: limit on staging buffers per rank, in bytes. Tensors sent or received in place need
            none. A store's minimum part size can require more.
        retry_timeout: seconds for which a failing request is tried again: its error is final once it has
            failed for that long without any progress. Throttling and outages that are shorter are ridden
            out. 300 is longer than what S3 takes to split a prefix or a service to restart, and shorter than
            the time limit of NCCL's collectives (600), in which the other ranks wait meanwhile.
        max_attempts: tries of one request before its error is final, if that comes first; ``None`` is any
            number.
        deadline: seconds for the whole save or load; ``None`` is no limit. A request that is under way then
            is cut.
    """

    #: Names of before, which go on working for a release.
    RENAMED: ClassVar[Mapping[str, Renamed]] = MappingProxyType(
        {"memory": Renamed("memory_limit"), "attempts": Renamed("max_attempts")}
    )

    #: Names that torch's own writer and reader have for options.
    STOCK_NAMES: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Keywords of theirs that are no options here.
    FOREIGN: ClassVar[Mapping[str, Foreign]] = MappingProxyType({})

    concurrency: int = 8
    memory_limit: int = 512 * MIB
    retry_timeout: float = 300.0
    max_attempts: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "concurrency", "memory_limit", "retry_timeout")
        _require_positive(self, "max_attempts", "deadline", optional=True)


class TransferKeywords(TypedDict, total=False):
    """:class:`TransferOptions` as keywords, for type checkers."""

    concurrency: int
    memory_limit: int
    retry_timeout: float
    max_attempts: int | None
    deadline: float | None


@dataclass(frozen=True)
class SaveOptions(TransferOptions):
    """Options of every writer.

    Attributes:
        part_size: target size of one part of a multipart upload, in bytes. Adjusted so that parts divide
            evenly over the connections, stay below a sixth of ``memory_limit`` and fit the store's part
            count. Objects up to 16 MiB go in one request.
        overwrite: replace a committed checkpoint at the same URL. ``False`` refuses before any upload.
        conditional_commit: commit with a conditional write, so that of two concurrent saves to one URL one
            wins and the other gets a ``ConflictError``. Switch off only for stores without conditional
            writes: the last writer then wins.
        extensions: torch's ``StreamTransformExtension`` objects that items go through on their way, such as
            a compression; ``_extensions`` is torch's name for them. Whole items are then made in memory.
    """

    STOCK_NAMES: ClassVar[Mapping[str, str]] = MappingProxyType({"_extensions": "extensions"})
    FOREIGN: ClassVar[Mapping[str, Foreign]] = MappingProxyType(
        {
            "thread_count": Foreign("concurrency= says how many requests are in flight"),
            "per_thread_copy_ahead": Foreign("memory_limit= bounds what is copied from devices ahead"),
            "single_file_per_rank": Foreign("a rank's items always share objects", ("True",)),
            "sync_files": Foreign("what a store has confirmed is always durable", ("True",)),
            "cache_staged_state_dict": Foreign(
                "give async_save async_stager=BlockingAsyncStager(cache_staged_state_dict=True)", ("False",)
            ),
            "serialization_format": Foreign(
                "safetensors files are written by dcp_core.huggingface.HuggingFaceStorageWriter",
                ("TORCH_SAVE", "torch_save"),
            ),
        }
    )

    part_size: int = 64 * MIB
    overwrite: bool = True
    conditional_commit: bool = True
    extensions: Sequence[Any] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "part_size")
        # torch takes None for none
        object.__setattr__(self, "extensions", tuple(self.extensions or ()))
        for one in self.extensions:
            if not (callable(getattr(one, "transform_to", None)) and hasattr(one, "get_descriptor")):
                raise ConfigurationError(f"extensions must be StreamTransformExtension objects, got {one!r}")


class SaveKeywords(TransferKeywords, total=False):
    """:class:`SaveOptions` as keywords, for type checkers."""

    part_size: int
    overwrite: bool
    conditional_commit: bool
    extensions: Sequence[Any]


@dataclass(frozen=True)
class LoadOptions(TransferOptions):
    """Options of every reader.

    Attributes:
        max_request_size: target size of one range request, in bytes; smaller where that keeps all
            connections busy.
        max_gap: unneeded bytes between two needed ranges that are read through rather than skipped with
            another request.
        verify_checksums: check the recorded checksums of all whole blocks that are read.
        weights_only: refuse non-tensor items that need more than ``torch.load(weights_only=True)``.
            ``False`` lets whoever can write to the bucket run code in this process.
        extension_registry: torch's ``ExtensionRegistry`` with the extensions that items were saved through;
            ``_extension_registry`` is torch's name for it. ``None`` has those of torch.
    """

    STOCK_NAMES: ClassVar[Mapping[str, str]] = MappingProxyType({"_extension_registry": "extension_registry"})

    RENAMED: ClassVar[Mapping[str, Renamed]] = MappingProxyType(
        {
            **TransferOptions.RENAMED,
            "request_size": Renamed("max_request_size"),
            "gap": Renamed("max_gap"),
            "verify": Renamed("verify_checksums"),
        }
    )

    max_request_size: int = 128 * MIB
    max_gap: int = 64 * KIB
    verify_checksums: bool = True
    weights_only: bool = True
    extension_registry: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "max_request_size")
        if self.max_gap < 0:
            raise ConfigurationError(f"max_gap must not be negative, got {self.max_gap!r}")
        registry = self.extension_registry
        if registry is not None and not hasattr(registry, "from_descriptor_list"):
            raise ConfigurationError(f"extension_registry must be an ExtensionRegistry, got {registry!r}")


class LoadKeywords(TransferKeywords, total=False):
    """:class:`LoadOptions` as keywords, for type checkers."""

    max_request_size: int
    max_gap: int
    verify_checksums: bool
    weights_only: bool
    extension_registry: Any


@dataclass(frozen=True)
class ConnectionOptions:
    """What every backend on HTTP has.

    Attributes:
        connect_timeout: seconds to wait for a connection; ``None`` is what the SDK is configured with, or 10.
        stall_timeout: seconds without a byte moved after which a request is cut and tried again.
        ca_bundle: file of certificate authorities; ``None`` is the SDK's choice.
        verify_tls: ``False`` accepts any certificate, for tests.
    """

    connect_timeout: float | None = None
    stall_timeout: float = 30.0
    ca_bundle: str | None = None
    verify_tls: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "stall_timeout")
        _require_positive(self, "connect_timeout", optional=True)

    @property
    def connect_seconds(self) -> float:
        """``connect_timeout``, where no SDK has a say in it."""
        return CONNECT_TIMEOUT if self.connect_timeout is None else self.connect_timeout


class ConnectionKeywords(TypedDict, total=False):
    """:class:`ConnectionOptions` as keywords, for type checkers."""

    connect_timeout: float | None
    stall_timeout: float
    ca_bundle: str | None
    verify_tls: bool


@dataclass(frozen=True)
class BucketOptions(ConnectionOptions):
    """What every backend has whose stores can be written.

    Attributes:
        limits: for stores that differ from the cloud's own: ``min_part_size``, ``max_part_size``,
            ``max_parts``, ``max_object_size``, ``max_put_size`` → bytes, or the count of parts.
    """

    limits: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (self.limits or {}).items():
            if name not in LIMITS:
                raise ConfigurationError(f"limits has no {name!r}; it has {', '.join(sorted(LIMITS))}")
            if not (isinstance(value, int) and value > 0):
                raise ConfigurationError(f"limits: {name} must be a positive whole number, got {value!r}")


class BucketKeywords(ConnectionKeywords, total=False):
    """:class:`BucketOptions` as keywords, for type checkers."""

    limits: Mapping[str, int] | None


def _require_positive(options: object, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(options, name)
        if value is None and optional:
            continue
        if not (isinstance(value, (int, float)) and value > 0):
            raise ConfigurationError(f"{name} must be a positive number, got {value!r}")


def _by_present_names(given: Mapping[str, Any], kinds: Iterable[type]) -> dict[str, Any]:
    """``given`` with options by their present names; a warning for each that has an old one."""
    found = dict(given)
    for kind in kinds:
        renamed: Mapping[str, Renamed] = getattr(kind, "RENAMED", {})
        for old in found.keys() & renamed.keys():
            name, values = renamed[old]
            if name in found:
                raise ConfigurationError(f"{old}= is the old name of {name}=: give one of them")
            # at the caller of the writer, reader or run
            warnings.warn(f"{old}= is now called {name}=", DeprecationWarning, stacklevel=6)
            value = found.pop(old)
            found[name] = values[value] if isinstance(value, Hashable) and value in values else value
    return found


def _without_stock_keywords(given: Mapping[str, Any], kinds: Iterable[type]) -> dict[str, Any]:
    """``given`` with options by their names here, and without keywords of torch's own writer that ask for
    what is done anyway.

    Raises:
        ConfigurationError: one asks for something else.
    """
    found = dict(given)
    for kind in kinds:
        names: Mapping[str, str] = getattr(kind, "STOCK_NAMES", {})
        for stock in found.keys() & names.keys():
            if names[stock] in found:
                raise ConfigurationError(f"{stock}= is torch's name of {names[stock]}=: give one of them")
            found[names[stock]] = found.pop(stock)
        foreign: Mapping[str, Foreign] = getattr(kind, "FOREIGN", {})
        for stock in found.keys() & foreign.keys():
            value = found.pop(stock)
            if getattr(value, "name", str(value)) not in foreign[stock].same:
                raise ConfigurationError(
                    f"{stock}={value!r} is for files on a disk; here {foreign[stock].advice}"
                )
    return found


def build_options(given: Mapping[str, Any], *kinds: type[_T]) -> tuple[_T, ...]:
    """Share out keyword options among option dataclasses by field name.

    Raises:
        ConfigurationError: a name that none of ``kinds`` has; the message lists those they do.
    """
    given = _by_present_names(_without_stock_keywords(given, kinds), kinds)
    names = {kind: {field.name for field in fields(kind)} for kind in kinds}  # type: ignore[arg-type]
    known = set().union(*names.values())
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigurationError(
            f"unknown option {', '.join(map(repr, unknown))}; known options: {', '.join(sorted(known))}"
        )
    return tuple(
        kind(**{name: value for name, value in given.items() if name in names[kind]}) for kind in kinds
    )
