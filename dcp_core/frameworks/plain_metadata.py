"""torch_checkpointing's metadata, a pickle that it loads as it is, made into one of plain data."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from typing import Any

import torch

from dcp_core.errors import UntrustedDataError
from dcp_core.format.inert import Kind, MalformedPickleError, Members, Pairs
from dcp_core.format.unpickle import unpickle

__all__ = ["as_plain_pickle"]

_TABLE: dict[tuple[str, str], Any] = {
    ("torch", "Size"): Kind("torch.Size", call=lambda arguments: tuple(*arguments)),
    **{
        ("torch", str(kind).partition(".")[2]): kind
        for kind in vars(torch).values()
        if type(kind) is torch.dtype
    },
}


def as_plain_pickle(data: bytes, json_types: Collection[str], path: str) -> bytes:
    """The same values as a pickle of this process: dicts, lists, tuples, numbers, text, dtypes.

    Args:
        json_types: classes that the metadata may name for what is made of JSON.

    Raises:
        UntrustedDataError: the pickle asks for anything else.
    """
    try:
        return pickle.dumps(_plain(unpickle(data, 0, _TABLE), frozenset(json_types)))
    except (MalformedPickleError, TypeError, ValueError, RecursionError) as error:
        raise UntrustedDataError(f"the metadata at {path} is not plain data: {error}") from error


def _plain(value: Any, json_types: Collection[str]) -> Any:
    if isinstance(value, Pairs):
        made = {
            _plain(key, json_types): _plain(one, json_types)
            for key, one in zip(value[::2], value[1::2], strict=True)
        }
        named = made.get("cls")
        if made.get("type") == "JsonSerialization" and named is not None and named not in json_types:
            raise ValueError(f"it makes JSON into {named!r}, which is not among json_types")
        return made
    if isinstance(value, (list, tuple)) and not isinstance(value, Members):
        return type(value)(_plain(one, json_types) for one in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
        return value
    raise TypeError(f"it holds a {type(value).__name__}")
