"""Commit records: read as pickle reads them, and held against themselves. All else is refused."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import MODULE, assert_same, metadata, name, read, record, refused, text
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_core import CheckpointCorruptError
from dcp_core.format import shortcuts
from dcp_core.format.metadata import encode_metadata
from dcp_core.format.stored import FACTS, Payload, StorageInfo, storage_info
from dcp_core.format.tiling import GAP, chunk_fault

DTYPES = [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("facts", [True, False])
@pytest.mark.parametrize(("tensors", "chunks"), [(0, 0), (1, 1), (40, 1), (2, 40), (9, 9)])
def test_a_record_is_read_as_pickle_reads_it(tensors: int, chunks: int, facts: bool, protocol: int) -> None:
    if facts and protocol == 2:
        pytest.skip("it has no opcode for bytes")
    written = metadata(tensors, chunks, facts=facts)
    data = pickle.dumps(written, protocol)
    assert_same(read(data), pickle.loads(data))
    assert_same(read(data), written)


def test_shortcuts_make_the_same_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With them and without; and they are taken."""
    for facts, large in itertools.product((True, False), (3, 70_000)):
        data = pickle.dumps(metadata(30, 12, facts=facts, rows=large))
        taken = _counted(monkeypatch, data)
        monkeypatch.setattr(shortcuts, "_MANY", math.inf)
        assert_same(taken, read(data))
        monkeypatch.undo()


def _counted(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Metadata:
    """What is read of a record most of whose objects are taken by shortcuts."""
    taken = 0

    def setitem(self: dict[Any, Any], kind: Any, take: shortcuts.Shortcut) -> None:
        def counted(at: int, stack: list[Any]) -> int:
            nonlocal taken
            end = take(at, stack)
            taken += end >= 0
            return end

        dict.__setitem__(self, kind, counted)

    with monkeypatch.context() as patch:
        patch.setattr(shortcuts.Shortcuts, "__setitem__", setitem, raising=False)
        found = read(data)
    objects = 3 * (len(found.storage_data) - 1) + len(found.state_dict_metadata) - 1
    assert taken > 0.85 * objects
    return found


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
object_names = st.text(
    st.characters(categories=("L", "N"), include_characters="._- "), min_size=1, max_size=30
)
object_names = object_names.filter(lambda one: one.strip(".") and one.isprintable())
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.floats(allow_nan=False)
    | names
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(names | st.integers(0, 9), inner, max_size=3)
        | st.sets(st.integers(0, 9))
    ),
    max_leaves=8,
)


@st.composite
def metadatas(draw: st.DrawFn) -> Metadata:
    """Any metadata that does not contradict itself, as this library or another writer may have made it."""
    entries: dict[str, Any] = {}
    stored: dict[MetadataIndex, StorageInfo] = {}
    end = 0
    for fqn in draw(st.lists(names, unique=True, max_size=6)):
        size = draw(st.none() | st.lists(st.integers(0, 1 << 33), max_size=3))
        if size is None:
            entries[fqn] = BytesStorageMetadata()
            indexes, lengths = [MetadataIndex(fqn)], [draw(st.integers(0, 1 << 40))]
        else:
            properties = TensorProperties(draw(st.sampled_from(DTYPES)), requires_grad=draw(st.booleans()))
            chunks = _rows(size, draw(st.integers(1, 4)))
            entries[fqn] = TensorStorageMetadata(properties, torch.Size(size), chunks)
            indexes = [MetadataIndex(fqn, chunk.offsets, number) for number, chunk in enumerate(chunks)]
            lengths = [math.prod(chunk.sizes) * properties.dtype.itemsize % (1 << 50) for chunk in chunks]
        for index, length in zip(indexes, lengths, strict=True):
            stored[index] = StorageInfo(draw(object_names), end, length)
            end += length
    meta = draw(st.none() | st.builds(StorageMeta, st.none() | names, st.none() | names, st.none() | names))
    return Metadata(entries, draw(st.none() | st.dictionaries(names, plain, max_size=4)), stored, meta)


def _rows(size: list[int], count: int) -> list[ChunkStorageMetadata]:
    if not size or size[0] < count:
        return [ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(size))]
    cuts = [size[0] * number // count for number in range(count + 1)]
    return [
        ChunkStorageMetadata(torch.Size([at, *[0] * (len(size) - 1)]), torch.Size([until - at, *size[1:]]))
        for at, until in itertools.pairwise(cuts)
    ]


@given(metadatas(), st.integers(4, 5))
def test_any_metadata_comes_back(written: Metadata, protocol: int) -> None:
    assert_same(read(encode_metadata(written)), written)
    assert_same(read(pickle.dumps(written, protocol)), written)


SMALL = metadata(2, 2, facts=True)
STOCK = pickle.dumps(metadata(2, 2, facts=False))


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_bit_of_a_record_that_was_changed_is_noticed() -> None:
    data = encode_metadata(SMALL)
    assert_same(read(data), SMALL)
    for bit in range(8 * len(data)):
        refused(_flipped(data, bit))


def test_a_record_that_was_cut_or_goes_on_is_noticed() -> None:
    data = encode_metadata(SMALL)
    for size in range(len(data)):
        refused(data[:size])
    for more in (b"\0", b".", b"N.", data):
        refused(data + more)


def _read_or_refused(data: bytes) -> Metadata | None:
    try:
        return read(data)
    except CheckpointCorruptError:
        return None


def test_every_bit_of_a_stock_record_reads_or_is_refused() -> None:
    """It has no checksum: what is read is what it says, and says without contradiction."""
    found = [_read_or_refused(_flipped(STOCK, bit)) for bit in range(8 * len(STOCK))]
    readable = [one for one in found if one is not None]
    assert len(readable) < len(found) / 2
    for one in readable:
        _check(one)


def _check(found: Metadata) -> None:
    """That a record which was read keeps what reading promises."""
    places = {(index.fqn, index.offset) for index in found.storage_data}
    for fqn, entry in found.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            assert (fqn, None) in places
            continue
        assert chunk_fault(entry.size, entry.chunks) in (None, GAP)
        assert {(fqn, chunk.offsets) for chunk in entry.chunks} <= places
    for info in found.storage_data.values():
        assert info.offset >= 0
        assert info.length >= 0
        assert ".." not in info.relative_path.split("/")


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with stretches taken out, doubled, exchanged and overwritten."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(2, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 60)))
        change = draw(st.sampled_from(["cut", "double", "swap", "write"]))
        if change == "cut":
            data = data[:start] + data[stop:]
        elif change == "double":
            data = data[:stop] + data[start:]
        elif change == "swap":
            end = min(len(data), stop + draw(st.integers(0, 60)))
            data = data[:start] + data[stop:end] + data[start:stop] + data[end:]
        else:
            data = data[:start] + draw(st.binary(min_size=1, max_size=12)) + data[stop:]
    return data


@settings(max_examples=1000)
@given(mutations(STOCK))
def test_mutations_of_a_stock_record_read_or_are_refused(data: bytes) -> None:
    found = _read_or_refused(data)
    if found is not None:
        _check(found)


PIECES = st.sampled_from(
    [
        *(bytes([opcode]) for opcode in range(256)),
        *(
            b"K\x00",
            b"J\xff\xff\xff\xff",
            b"M\x02\x01",
            b"\x8a\x01\x05",
            b"h\x00",
            b"h\x01",
            b"q\x00",
            b"C\x01a",
        ),
        *(
            b")\x81",
            b"}\x94(",
            b"ub",
            b"\x85R",
            text("a"),
            text("offsets"),
            text("fqn"),
            text("storage_data"),
        ),
        *(
            name(MODULE, one)
            for one in ("Metadata", "TensorProperties", "MetadataIndex", "ChunkStorageMetadata")
        ),
        *(name("torch", "Size"), name("torch", "float32"), name("builtins", "getattr"), name("os", "system")),
    ]
)


@settings(max_examples=1000)
@given(st.lists(PIECES, max_size=40), st.booleans())
def test_any_opcodes_are_refused_or_read(pieces: list[bytes], inside: bool) -> None:
    opcodes = b"".join(pieces)
    _read_or_refused(record(opcodes) if inside else b"\x80\x04" + opcodes + b".")


def _info(found: Metadata) -> StorageInfo:
    """Where the second chunk of the first tensor is."""
    return list(found.storage_data.values())[2]


def _tensor(found: Metadata) -> TensorStorageMetadata:
    return next(one for one in found.state_dict_metadata.values() if isinstance(one, TensorStorageMetadata))


def _move_chunk(found: Metadata, offsets: Sequence[int], sizes: Sequence[int]) -> None:
    """Give the first tensor's second chunk another place, in the entry and where it is stored."""
    entry = _tensor(found)
    before = entry.chunks[1].offsets
    entry.chunks[1] = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    fqn = "model.layers.0.weight"
    info = found.storage_data.pop(MetadataIndex(fqn, before))
    vars(info).pop(FACTS)
    found.storage_data[MetadataIndex(fqn, torch.Size(offsets))] = info


def _set_facts(found: Metadata, *facts: Any) -> None:
    setattr(_info(found), FACTS, facts)


def _another_dtype(found: Metadata) -> None:
    entry = _tensor(found)
    entry.properties = TensorProperties(torch.float64)


def _swap_storage(found: Metadata, **state: Any) -> None:
    vars(found).update(state)


def _info_with(**state: Any) -> Callable[[Metadata], None]:
    return lambda found: vars(_info(found)).update(state)


def _unplace(found: Metadata, fqn: str) -> None:
    for index in [index for index in found.storage_data if index.fqn == fqn]:
        del found.storage_data[index]


CONTRADICTIONS: dict[str, tuple[Callable[[Metadata], Any], str]] = {
    "overlap": (lambda found: _move_chunk(found, (2, 0), (3, 5)), "overlap"),
    "outside": (lambda found: _move_chunk(found, (4, 0), (3, 5)), "reach outside of it"),
    "other dimensions": (lambda found: _move_chunk(found, (3,), (15,)), "have other dimensions"),
    "a chunk twice": (lambda found: _tensor(found).chunks.append(_tensor(found).chunks[1]), "overlap"),
    "no place": (lambda found: _unplace(found, "model.layers.0.weight"), "does not say where"),
    "no place for an object": (lambda found: _unplace(found, "step"), "does not say where 'step' is stored"),
    "another dtype": (_another_dtype, "it gives 60 bytes to 'model.layers.0.weight'"),
    "places overlap": (lambda found: vars(_info(found)).update(offset=1), "items overlap in '__1_0"),
    "a negative offset": (_info_with(offset=-1), "impossible range"),
    "a negative length": (_info_with(length=-1), "impossible range"),
    "an offset that is no number": (_info_with(offset="0"), "impossible range"),
    "an offset that is a truth": (_info_with(offset=True), "impossible range"),
    "facts outside of the frame": (lambda found: _set_facts(found, 1, 1200, 61, False, b""), "does not fit"),
    "facts of another type": (lambda found: _set_facts(found, 1, 0, 60, 1, b""), "are damaged"),
    "too many checksums": (lambda found: _set_facts(found, 1, 0, 60, True, b"\0" * 8), "too many checksums"),
    "no state": (
        lambda found: b"\x80\x04" + name(MODULE, "Metadata") + b")\x81.",
        "holds a Metadata where a Metadata belongs",
    ),
    "no storage": (lambda found: _swap_storage(found, storage_data=None), "its storage_data is no dict"),
    "a version that is none": (lambda found: _swap_storage(found, version=3), "its version is no text"),
    "an id that is none": (
        lambda found: vars(found.storage_meta).update(save_id=7),
        "its save_id is no text",
    ),
    **{
        f"name {given!r}": (_info_with(relative_path=given), "is no name of an object below the checkpoint")
        for given in ("", "/etc/passwd", "../other", "a/../../b", ".", "a//b", "a\0b", "a\nb")
    },
    f"name {'x' * 20!r}": (
        _info_with(relative_path="x" * 1025),
        "is no name of an object below the checkpoint",
    ),
}


@pytest.mark.parametrize("title", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused(title: str) -> None:
    change, reason = CONTRADICTIONS[title]
    found = metadata(2, 2, facts=True)
    read(encode_metadata(found))
    changed = change(found)
    data = changed if isinstance(changed, bytes) else encode_metadata(found)
    assert reason in refused(data)


def test_a_rank_s_own_record_may_have_a_part_of_a_tensor() -> None:
    found = metadata(2, 3, facts=True)
    entry = _tensor(found)
    del found.storage_data[MetadataIndex("model.layers.0.weight", entry.chunks.pop(1).offsets)]
    assert_same(read(encode_metadata(found)), found)
    # none at all as well
    for chunk in entry.chunks:
        del found.storage_data[MetadataIndex("model.layers.0.weight", chunk.offsets)]
    entry.chunks.clear()
    assert_same(read(encode_metadata(found)), found)


def test_an_item_may_share_its_place_with_another() -> None:
    """Whole, as a tied weight might; not in part."""
    found = metadata(2, 1, facts=True)
    places = list(found.storage_data)
    found.storage_data[places[2]] = StorageInfo(
        **{
            field: getattr(found.storage_data[places[1]], field)
            for field in ("relative_path", "offset", "length")
        }
    )
    assert_same(read(encode_metadata(found)), found)
    found.storage_data[places[2]].length -= 1
    assert "items overlap" in refused(encode_metadata(found))


@st.composite
def chunkings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[ChunkStorageMetadata]]:
    """Chunks that often tile a tensor: a tiling, perhaps with something changed."""
    size = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    boxes = [tuple((0, extent) for extent in size)]
    for _ in range(draw(st.integers(0, 6)) if size else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(size) - 1))
        cut = draw(st.integers(*box[dim]))
        boxes += [
            (*box[:dim], (box[dim][0], cut), *box[dim + 1 :]),
            (*box[:dim], (cut, box[dim][1]), *box[dim + 1 :]),
        ]
    boxes = [box for box in boxes if all(start < stop for start, stop in box)]
    if boxes and draw(st.booleans()):
        change = draw(st.sampled_from(["drop", "double", "move"]))
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        if change == "double":
            boxes += [box, box]
        elif change == "move" and size:
            by = draw(st.integers(-2, 2))
            boxes.append(
                tuple((max(0, start + by), max(0, start + by) + stop - start) for start, stop in box)
            )
    return size, [
        ChunkStorageMetadata(
            torch.Size([start for start, _ in box]), torch.Size([stop - start for start, stop in box])
        )
        for box in boxes
    ]


@settings(max_examples=400)
@given(chunkings())
def test_chunks_are_judged_as_counting_elements_judges_them(
    case: tuple[tuple[int, ...], list[ChunkStorageMetadata]],
) -> None:
    size, chunks = case
    found = chunk_fault(size, chunks)
    reach = [
        range(offset, offset + extent)
        for chunk in chunks
        for offset, extent in zip(chunk.offsets, chunk.sizes, strict=True)
    ]
    limits = [extent for _ in chunks for extent in size]
    if any(one.stop > limit for one, limit in zip(reach, limits, strict=True)):
        assert found == "reach outside of it"
        return
    count = torch.zeros(size, dtype=torch.int64)
    for chunk in chunks:
        count[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))] += 1
    if (count > 1).any() and size:
        assert found == "overlap"
    elif (count == 0).any():
        assert found == GAP
    else:
        assert found is None


@pytest.mark.parametrize("grid", [(4096,), (64, 64), (16, 16, 16), (8, 8, 8, 8)])
def test_a_grid_of_chunks_is_judged_in_proportion_to_its_size(grid: tuple[int, ...]) -> None:
    """Whole, with a chunk missing, and with one twice; by how many chunks were compared, not by the clock."""
    size = tuple(3 * extent for extent in grid)
    chunks = [
        ChunkStorageMetadata(torch.Size([3 * at for at in place]), torch.Size([3] * len(grid)))
        for place in itertools.product(*map(range, grid))
    ]
    assert chunk_fault(size, chunks) is None
    assert chunk_fault(size, chunks[::-1]) is None
    assert chunk_fault(size, chunks[:100] + chunks[101:]) in (
        GAP,
        "lie scattered too irregularly to be checked",
    )
    assert chunk_fault(size, [*chunks[:-1], chunks[0]]) == "overlap"


def test_tensors_cut_along_more_dimensions_than_any_mesh_has_are_refused() -> None:
    for dims, expected in ((8, None), (9, "are cut along more than 8 dimensions")):
        chunks = [
            ChunkStorageMetadata(torch.Size(place), torch.Size([1] * dims))
            for place in itertools.product(range(2), repeat=dims)
        ]
        assert chunk_fault((2,) * dims, chunks) == expected
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((2,) * 9), chunks)
    stored = {
        MetadataIndex("w", chunk.offsets): storage_info("data", 4 * number, 4, Payload(0, 4, True, b""))
        for number, chunk in enumerate(chunks)
    }
    message = refused(encode_metadata(Metadata({"w": entry}, None, stored)))
    assert "are cut along more than 8 dimensions" in message
