"""Commit records that somebody wrote to do harm: refused, at bounded cost, with nothing changed."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.records import MODULE, instance, metadata, name, read, record, refused, text
from torch.distributed.checkpoint import metadata as torch_metadata

from dcp_core.format.metadata import encode_metadata

PROPERTIES = name(MODULE, "TensorProperties")
SIZE = name("torch", "Size")
STATE = b"}(" + text("evil") + b"K\x01u"
#: ((((), ()), ((), ())), …: 2^60 empty tuples in 241 bytes.
TUPLES = b")" + b"".join(b"\x94h%c\x86" % level for level in range(60))


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


STATE_OF = "it sets the state of something else than a new object"
MADE = "it makes an object in a way that a commit record has no use for"
PART = "a size or an offset has a part that is no natural number"
SAYS_MORE = "it says more than its size allows"
KEY = "it has a key that is a tuple"
SHORT = "it is cut short"
PAIRS = "it adds pairs to something else than a dict"
END = "it does not end where it should"


def _unknown(opcode: int) -> str:
    return f"opcode {opcode} has no place in a commit record"


#: What stands where the planner's data belongs, and why the record is refused.
VALUES: dict[str, tuple[bytes, str]] = {
    "attributes of a class": (PROPERTIES + STATE + b"b", STATE_OF),
    "attributes of a class at once": (PROPERTIES + b"N" + STATE + b"\x86b", STATE_OF),
    "attributes of a type": (SIZE + STATE + b"b", STATE_OF),
    "attributes of a dtype": (name("torch", "float32") + STATE + b"b", STATE_OF),
    "a function": (name("torch", "load") + text("/etc/passwd") + b"\x85R", "torch.load has no place"),
    "a function of builtins": (name("builtins", "eval") + text("1") + b"\x85R", "builtins.eval has no place"),
    "a name with dots": (text(MODULE) + text("TensorProperties.__init__") + b"\x93", "__init__ has no place"),
    "an attribute": (
        name("builtins", "getattr") + PROPERTIES + text("__init__") + b"\x86R",
        "it asks for an attribute",
    ),
    "a large call": (SIZE + b"(" + b"K\x01" * 100_000 + b"t\x85R", "a size or an offset is a tuple"),
    "a size of too much": (SIZE + b"\x8a\x09" + b"\0" * 7 + b"\x80\0\x85\x85R", PART),
    "a negative size": (SIZE + b"J\xff\xff\xff\xff\x85\x85R", PART),
    "a size that no tensor has": (SIZE + b"(" + b"K\x01" * 65 + b"t\x85R", "a size or an offset is a tuple"),
    "a new object with arguments": (PROPERTIES + b"K\x01\x85\x81", MADE),
    "a new size": (SIZE + b")\x81", MADE),
    "a key of tuples in tuples": (b"}" + TUPLES + b"Ns", KEY),
    "a member of tuples in tuples": (b"}" + text("a") + b"\x8f(" + TUPLES + b"\x90s", KEY),
    "a deep key": (b"})" + b"\x85" * 100_000 + b"Ns", KEY),
    "a deep value": (b"}" + text("a") + b")" + b"\x85" * 100_000 + b"s", SAYS_MORE),
    "an index of the memo": (b"}r\xff\xff\xff\x7f", "it numbers its values out of turn"),
    "an index of the memo that is not the next": (b"}q\x05", "it numbers its values out of turn"),
    "a reference to nothing": (b"h\x63", SHORT),
    "a frame that is too long": (b"\x95" + _u64(1 << 40) + b"N", SHORT),
    "text that is too long": (b"X\xff\xff\xff\x7fabc", SHORT),
    "bytes that are too long": (b"B\xff\xff\xff\x7fabc", SHORT),
    "text of 64 bits": (b"\x8d" + _u64(1) + b"a", _unknown(0x8D)),
    "bytes of 64 bits": (b"\x8e" + _u64(1) + b"a", _unknown(0x8E)),
    "a bytearray": (b"\x96" + _u64(1) + b"a", _unknown(0x96)),
    "an integer of four megabytes": (
        b"\x8b" + (4 << 20).to_bytes(4, "little") + b"\x01" * (4 << 20),
        _unknown(0x8B),
    ),
    "an integer of 255 bytes": (b"\x8a\xff" + b"\x01" * 255, "it has an integer of 255 bytes"),
    "an integer in digits": (b"I" + b"9" * 5000 + b"\n", _unknown(ord("I"))),
    "text that is none": (b"X\x02\0\0\0\xff\xff", "it has text that is none"),
    "an identifier elsewhere": (text("a") + b"Q", _unknown(ord("Q"))),
    "an identifier elsewhere in text": (b"Pa\n", _unknown(ord("P"))),
    "an extension": (b"\x82\x01", _unknown(0x82)),
    "an instance": (f"(i{MODULE}\nTensorProperties\n".encode(), _unknown(ord("i"))),
    "an object of a class": (b"(" + PROPERTIES + b"o", _unknown(ord("o"))),
    "a new object with keywords": (PROPERTIES + b")}\x92", _unknown(0x92)),
    "a duplicate": (b"}2", _unknown(ord("2"))),
    "a pop": (b"N}0", _unknown(ord("0"))),
    "a list of marks": (b"(((l", _unknown(ord("l"))),
    "a key without a value": (b"}(Nu", PAIRS),
    "pairs for a list": (b"](" + text("a") + b"Nu", PAIRS),
    "items for a dict": (b"}(NNe", "it adds to a Pairs as to something else"),
    "a state for text": (text("a") + STATE + b"b", STATE_OF),
    "a state for a list": (b"]" + STATE + b"b", STATE_OF),
}
RIGHT = record()
RECORDS: dict[str, tuple[bytes, str]] = {
    **{title: (record(opcodes), reason) for title, (opcodes, reason) in VALUES.items()},
    "too little for a tuple": (b"\x80\x04N\x86.", "it takes more than there is"),
    "more than one value": (RIGHT[:2] + b"N" + RIGHT[2:], END),
    "nothing": (b"\x80\x04.", END),
    "no end": (RIGHT[:-1], SHORT),
    "more behind the end": (RIGHT + b"N", END),
    "another protocol": (b"\x80\x06" + RIGHT[2:], "it is of another protocol"),
}


def _what_could_change() -> dict[str, Any]:
    """Attributes of what a record may name, and of modules that it may not."""
    owners = {
        **{key: value for key, value in vars(torch_metadata).items() if isinstance(value, type)},
        **{"Size": torch.Size, "dtype": torch.dtype, "layout": torch.layout, "torch": torch},
        "_get_layout": torch.serialization._get_layout,
    }
    return {key: dict(vars(owner)) for key, owner in owners.items()}


@pytest.mark.parametrize("title", RECORDS)
def test_a_hostile_record_is_refused_and_changes_nothing(title: str) -> None:
    before, modules = _what_could_change(), set(sys.modules)
    data, reason = RECORDS[title]
    assert reason in refused(data)
    assert _what_could_change() == before
    assert set(sys.modules) == modules


def test_a_right_record_made_by_hand_is_read() -> None:
    """What is refused above is refused for the one thing that is wrong with it."""
    planner_data = b"}(" + text("a") + text("a") + b"\x85" + text("b") + b"](K\x01G" + b"\0" * 8 + b"eu"
    for protocol in range(2, 6):
        found = read(record(planner_data, protocol=protocol))
        assert found.state_dict_metadata == found.storage_data == {}
        assert found.planner_data == {"a": ("a",), "b": [1, 0.0]}
    size = SIZE + b"K\x02K\x03\x86\x85R"
    assert read(record(b"}" + text("a") + size + b"s")).planner_data == {"a": torch.Size((2, 3))}
    state = (
        b"(" + name("torch", "float32") + name("torch.serialization", "_get_layout") + text("torch.strided")
    )
    state += b"\x85R\x89" + name(MODULE, "_MEM_FORMAT_ENCODING") + b"K\x00\x85R\x89t"
    entry = instance(
        name(MODULE, "TensorStorageMetadata"),
        properties=PROPERTIES + b")\x81" + state + b"b",
        size=size,
        chunks=b"]",
    )
    (found,) = read(record(state_dict_metadata=b"}" + text("w") + entry + b"s")).state_dict_metadata.values()
    assert (found.size, found.properties.dtype) == (torch.Size((2, 3)), torch.float32)


#: Each list has the one before it nine times over.
LISTS = b"}(" + b"".join(
    text(str(level)) + b"]\x94(" + b"".join((b"h%c" % before) * 9 for before in range(level)[-1:]) + b"e"
    for level in range(12)
)
#: Planner data that stands for more than the record has bytes, or for more than data.
SWOLLEN: dict[str, tuple[bytes, str]] = {
    "lists of lists": (LISTS + b"u", SAYS_MORE),
    "tuples of tuples": (b"}" + text("a") + TUPLES + b"s", SAYS_MORE),
    "a list in itself": (b"}" + text("a") + b"]q\0h\0as", SAYS_MORE),
    "a set of sets": (b"}" + text("a") + b"\x8f(\x8f\x90s", "it has a key that is a Members"),
    "a tuple for a key": (b"}K\x01\x85Ns", KEY),
    "a dict for a key": (b"}q\0h\0Ns", "it has a key that is a Pairs"),
    "a list": (b"]", "its planner_data is no dict"),
    "text": (text("a"), "its planner_data is no dict"),
}


@pytest.mark.parametrize("title", SWOLLEN)
def test_planner_data_is_plain_and_no_larger_than_the_record(title: str) -> None:
    opcodes, reason = SWOLLEN[title]
    assert reason in refused(record(opcodes))


def _calls(work: Callable[[], Any]) -> int:
    """Calls of functions, in Python and in C, that ``work`` makes: a measure of time that no other load on
    the machine changes."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _most_memory(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` has allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "opcodes", [b"}", b"]", b")", b"\x8f", b"N", b"K\x01", b"]\x94", b"(", b")\x94\x85", b"}\x94h\0"]
)
def test_memory_and_work_are_in_proportion_to_the_size(opcodes: bytes) -> None:
    few, many = (b"\x80\x04" + opcodes * count + b"." for count in (10_000, 40_000))
    assert _calls(lambda: refused(many)) <= 4 * _calls(lambda: refused(few)) + 1000
    # an empty dict of the stream takes one byte there, and a hundred here
    assert _most_memory(lambda: refused(many)) <= 400 * len(many) + (1 << 20)


def test_a_large_record_takes_work_in_proportion_to_its_size() -> None:
    few, many = (encode_metadata(metadata(count, 4, facts=True)) for count in (150, 600))
    read(few)
    assert len(many) < 4.5 * len(few)
    assert _calls(lambda: read(many)) <= 4.5 * _calls(lambda: read(few))
    assert _most_memory(lambda: read(many)) <= 30 * len(many) + (1 << 20)


def test_an_unknown_name_is_told() -> None:
    assert "os.system has no place in a commit record" in refused(record(name("os", "system")))
    by_stack = text("os") + text("system") + b"\x93"
    assert "os.system has no place in a commit record" in refused(record(by_stack))
    # and not at full length
    assert len(refused(record(name("a" * 10_000, "b" * 10_000)))) < 500
