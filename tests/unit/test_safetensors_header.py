"""Headers of safetensors files: built as the safetensors package does, and read without trust."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import scenarios

from dcp_core import CheckpointCorruptError, UnsupportedTensorError
from dcp_core.huggingface.header import (
    StoredTensor,
    TensorSpec,
    build_header,
    dtype_name,
    file_metadata,
    header_size,
    parse_header,
    saved_offsets,
    written_order,
)

DTYPES = [dtype for dtype in scenarios.DTYPES if dtype_name(dtype) is not None]


def specs(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return written_order(TensorSpec(name, one.dtype, tuple(one.shape)) for name, one in tensors.items())


def file_of(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    ordered = specs(tensors)
    return build_header(ordered, metadata) + b"".join(scenarios.bits(tensors[spec.name]) for spec in ordered)


def file_with(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file whose header is ``entries``, JSON or the bytes themselves."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- beside the safetensors package

_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
    lambda name: name != "__metadata__"
)
_shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(st.dictionaries(_names, st.tuples(st.sampled_from(DTYPES), _shapes), max_size=6))
def test_a_file_loads_with_the_package(described: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = {
        name: scenarios.noise(number, shape, dtype)
        for number, (name, (dtype, shape)) in enumerate(described.items())
    }
    raw = file_of(tensors, file_metadata())
    known = {name: one for name, one in tensors.items() if _package_loads(one.dtype)}
    found = dict(safetensors.deserialize(raw))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tuple(found[name]["shape"]) == tuple(tensor.shape)
        assert bytes(found[name]["data"]) == scenarios.bits(tensor)
    if len(known) == len(tensors):
        scenarios.assert_same(safetensors.torch.load(raw), tensors)


def _package_loads(dtype: torch.dtype) -> bool:
    return dtype is not getattr(torch, "float8_e8m0fnu", None)


@given(st.dictionaries(_names, st.tuples(st.sampled_from(DTYPES), _shapes), max_size=6))
def test_a_file_of_the_package_is_read(described: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = {
        name: scenarios.noise(number, shape, dtype)
        for number, (name, (dtype, shape)) in enumerate(described.items())
        if _package_loads(dtype)
    }
    raw = safetensors.torch.save(tensors, metadata={"format": "pt", "ü": '"\n'})
    header = parse_header(raw[: header_size(raw, len(raw))], len(raw))
    assert header.metadata == {"format": "pt", "ü": '"\n'}
    assert header.tensors.keys() == tensors.keys()
    for name, (dtype, shape, start, stop) in header.tensors.items():
        assert (dtype, shape) == (tensors[name].dtype, tuple(tensors[name].shape))
        assert raw[start:stop] == scenarios.bits(tensors[name])


@given(st.dictionaries(_names, st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]), max_size=6))
def test_a_header_is_the_packages_own(dtypes: dict[str, torch.dtype]) -> None:
    tensors = {name: scenarios.noise(n, (3,), dtype) for n, (name, dtype) in enumerate(dtypes.items())}
    ours = build_header(specs(tensors), {"format": "pt"})
    assert safetensors.torch.save(tensors, metadata={"format": "pt"})[: len(ours)] == ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements_lie_aligned_whatever_lies_before_them(dtype: torch.dtype) -> None:
    tensors = {
        f"{number}": scenarios.noise(number, (number % 3 + 1,), one)
        for number, one in enumerate([dtype, *DTYPES])
    }
    raw = file_of(tensors, file_metadata())
    for found, _, start, _ in parse_header(raw, len(raw)).tensors.values():
        assert start % found.itemsize == 0


def test_parts_say_where_they_lie() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    raw = file_of(tensors, file_metadata({"a": (4, 0), "b": (8,)}))
    assert saved_offsets(parse_header(raw, len(raw))) == {"a": (4, 0), "b": (8,)}
    whole = file_of(tensors, file_metadata())
    assert saved_offsets(parse_header(whole, len(whole))) == {"a": (0, 0), "b": (0,)}


@pytest.mark.parametrize("dtype", [torch.complex128], ids=str)
def test_what_the_format_has_no_name_for_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedTensorError, match=r"'w' cannot be saved: safetensors has no torch"):
        build_header([TensorSpec("w", dtype, (1,))], {})


def test_the_name_of_the_metadata_is_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match="rename the tensor"):
        build_header([TensorSpec("__metadata__", torch.int8, (1,))], {})


# --- what others wrote

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it has 0 bytes"),
    "seven bytes": (b"\x02" + b"\0" * 6, "it has 7 bytes"),
    "a length beyond the file": (file_with({}, length=3), "it is cut short"),
    "a length beyond any": (b"\xff" * 8 + b"{}", "100000000 at most are read"),
    "a long header": (struct.pack("<Q", 100_000_001) + b"{}", "100000000 at most are read"),
    "no JSON": (file_with(b"{nothing"), "is no JSON"),
    "no UTF-8": (file_with(b'{"\xff": 1}'), "is no JSON"),
    "no object": (file_with([]), "does not begin with a brace"),
    "space before it": (file_with(b" {}"), "does not begin with a brace"),
    "deep": (file_with(b'{"a":' * 100_000), "is no JSON"),
    "a long number": (
        file_with(b'{"a":{"dtype":"F32","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,8]}}'),
        "is no JSON",
    ),
    "a name twice": (
        file_with(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "a name occurs twice",
    ),
    "a field twice": (
        file_with(b'{"a":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "a name occurs twice",
    ),
    "a number for a tensor": (file_with({"a": 1}), "is not described"),
    "no shape": (file_with({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "is not described"),
    "an unknown dtype": (file_with({"a": entry("F33")}, bytes(8)), "an unknown dtype"),
    "a list for a dtype": (file_with({"a": entry(["F32"])}, bytes(8)), "an unknown dtype"),
    "a negative size": (file_with({"a": entry(shape=[-2])}, bytes(8)), "no such numbers"),
    "a truth for a size": (file_with({"a": entry(shape=[True, 2])}, bytes(8)), "no such numbers"),
    "a fraction": (file_with({"a": entry(shape=[2.0])}, bytes(8)), "no such numbers"),
    "a text for a shape": (file_with({"a": entry(shape="22")}, bytes(8)), "no such numbers"),
    "one offset": (file_with({"a": entry(offsets=[8])}, bytes(8)), "no such numbers"),
    "beyond 64 bits": (file_with({"a": entry(shape=[0, 1 << 63], offsets=[0, 0])}), "no such numbers"),
    "65 dimensions": (file_with({"a": entry(shape=[1] * 65, offsets=[0, 4])}, bytes(4)), "no such numbers"),
    "a size that overflows": (
        file_with({"a": entry(shape=[1 << 62, 4], offsets=[0, 0])}),
        "a tensor of 73786976294838206464",
    ),
    "offsets that shrink": (file_with({"a": entry(offsets=[8, 0])}, bytes(8)), "it gives -8 bytes"),
    "too few bytes": (file_with({"a": entry(offsets=[0, 7])}, bytes(7)), "it gives 7 bytes to 'a'"),
    "beyond the file": (file_with({"a": entry()}, bytes(7)), "is it cut short?"),
    "bytes behind": (file_with({"a": entry()}, bytes(9)), "its tensors end at byte"),
    "an overlap": (
        file_with({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "'b' overlaps another tensor",
    ),
    "the same place": (file_with({"a": entry(), "b": entry()}, bytes(8)), "'b' overlaps another tensor"),
    "a gap": (file_with({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)), "'b' follows a gap"),
    "inside the header": (file_with({"a": entry(offsets=[-8, 0])}), "no such numbers"),
    "metadata of numbers": (file_with({"__metadata__": {"a": 1}}), "its metadata are no texts"),
    "metadata in a list": (file_with({"__metadata__": []}), "its metadata are no texts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name: str) -> None:
    raw, reason = HOSTILE[name]
    with pytest.raises(CheckpointCorruptError, match="the safetensors file is damaged") as caught:
        parse_header(raw, len(raw))
    assert reason in str(caught.value)


@pytest.mark.parametrize("packed", ["F4", "F6_E2M3", "F6_E3M2"])
def test_elements_that_are_no_whole_bytes_are_refused(packed: str) -> None:
    raw = file_with({"a": entry(packed, [4, 2], [0, 4])}, bytes(4))
    with pytest.raises(UnsupportedTensorError, match=f"'a' has the dtype {packed}"):
        parse_header(raw, len(raw))


@pytest.mark.parametrize(
    "noted",
    [
        *("[]", "{", '{"b":{}}', '{"a":1}', '{"a":{"saved_offsets":[0,0]}}', '{"a":{"saved_offsets":[-1]}}'),
        *(f'{{"a":{{"saved_offsets":[{(1 << 63) - 2}]}}}}', '{"a":{"saved_offsets":["0"]}}'),
    ],
)
def test_places_of_parts_that_fit_no_tensor_are_refused(noted: str) -> None:
    raw = file_with({"__metadata__": {"DCP_SHARDING_INFO": noted}, "a": entry()}, bytes(8))
    with pytest.raises(CheckpointCorruptError):
        saved_offsets(parse_header(raw, len(raw)))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "I64", "F99"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2),
    }
)
_header = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), _entry | _json, max_size=4)


@given(_header.map(lambda header: json.dumps(header).encode()) | st.binary(max_size=60), st.integers(0, 60))
@example(b"{}", 0)
@example(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8)
def test_whatever_is_read_the_package_reads_too(text: bytes, size: int) -> None:
    raw = file_with(text, bytes(size))
    try:
        header = parse_header(raw, len(raw))
    except CheckpointCorruptError:
        return
    found = dict(safetensors.deserialize(raw))
    assert {name: (tuple(one["shape"]), len(one["data"])) for name, one in found.items()} == {
        name: (one.shape, one.stop - one.start) for name, one in header.tensors.items()
    }


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    with pytest.raises(CheckpointCorruptError):
        parse_header(raw, len(raw))


@given(st.data())
def test_a_changed_byte_leads_to_no_place_outside(data: st.DataObject) -> None:
    raw = bytearray(
        file_of({"a": torch.ones(2, 3), "b": torch.ones(5)}, file_metadata({"a": (2, 0), "b": (0,)}))
    )
    size = header_size(bytes(raw), len(raw))
    raw[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(raw), len(raw))
        saved_offsets(header)
    except (CheckpointCorruptError, UnsupportedTensorError):
        return
    assert all(size <= one.start <= one.stop <= len(raw) for one in header.tensors.values())


def test_a_tensor_without_elements_takes_no_place() -> None:
    raw = file_with({"a": entry(shape=[0, 3], offsets=[0, 0]), "b": entry()}, bytes(8))
    size = header_size(raw, len(raw))
    assert parse_header(raw, len(raw)).tensors["a"] == StoredTensor(torch.float32, (0, 3), size, size)
