"""The objects of which a record has one for each item, taken in one step each.

The pickler writes them alike but for numbers and references. Once some have been interpreted, and with them
the names of their attributes are in the memo, a regular expression of those very references recognizes the
others from their first opcode to their last. What it does not match is interpreted, opcode by opcode.

An object that is taken at once has its value already, and needs no node to stand for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from struct import Struct
from typing import Any, Protocol

from dcp_core.format import kinds
from dcp_core.format.inert import Kind
from dcp_core.format.stored import FACTS

__all__ = ["Shortcut", "Shortcuts"]

#: Takes the object that begins at a position, behind the reference to its kind, onto a stack. Returns where
#: the stream goes on, or -1 if no such object is there.
Shortcut = Callable[[int, list[Any]], int]

#: Objects of a kind before it is worth a regular expression.
_MANY = 16
_UINT32 = Struct("<I").unpack_from

_REF = rb"(h.|j.{4})"
_SHORT = rb"K.|M..|J.{4}"
_INT = rb"(%b|\x8a\x05.{5}|\x8a\x06.{6})" % _SHORT
_SIZE = rb"((?:%b){1,3}[\x85-\x87]|\((?:%b){4,64}t)" % (_SHORT, _SHORT)
# the opcodes are named in unpickle.py
_NEW = re.escape(b")\x81\x94}\x94(")
_CALL = re.escape(b"\x94\x85\x94R\x94")
_END = b"ub"


class _Gone:
    """Stands in the memo for what only the object itself refers to: its state."""


_GONE = _Gone()


class Stream(Protocol):
    """What a shortcut needs of the interpreter."""

    data: bytes
    memo: list[Any]

    def integers(self, kind: Kind, raw: bytes) -> tuple[Any, ...] | None:
        """What a call of ``kind`` with the tuple of integers ``raw`` adds to the memo."""


class Shortcuts(dict[Kind, Shortcut]):
    """The shortcuts of one record, made as it is read."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._seen: Counter[Kind] = Counter()
        self._makers = {
            kinds.CHUNK: self._chunk,
            kinds.INDEX: self._index,
            kinds.INFO: self._info,
            kinds.PROPERTIES: self._properties,
        }

    def count(self, kind: Kind) -> None:
        """Note that an object of ``kind`` is about to be interpreted."""
        self._seen[kind] += 1
        if self._seen[kind] == _MANY and kind in self._makers:
            try:
                self[kind] = self._makers[kind]()
            except ValueError:
                # it is written in another way than torch's: no name of an attribute is where one should be
                return

    def _reference(self, value: Any) -> bytes:
        """The opcode that pushes ``value``, which is in the memo, as a pattern."""
        place = self._stream.memo.index(value)
        return re.escape(b"h%c" % place if place < 256 else b"j" + place.to_bytes(4, "little"))

    def _match(self, *pieces: bytes) -> Callable[[bytes, int], re.Match[bytes] | None]:
        return re.compile(b"".join(pieces), re.DOTALL).match

    def _sized(self, name: str) -> bytes:
        return self._reference(name) + self._reference(kinds.SIZE) + _SIZE + _CALL

    def _chunk(self) -> Shortcut:
        data, memo, integers = self._stream.data, self._stream.memo, self._stream.integers
        match = self._match(_NEW, self._sized("offsets"), self._sized("sizes"), _END)
        size, make = kinds.SIZE, kinds.chunk

        def take(at: int, stack: list[Any]) -> int:
            found = match(data, at)
            if found is None:
                return -1
            first, second = found.groups()
            offsets, sizes = integers(size, first), integers(size, second)
            if offsets is None or sizes is None:
                return -1
            made = make(offsets[-1], sizes[-1])
            memo.extend((made, _GONE, *offsets, *sizes))
            stack.append(made)
            return found.end()

        return take

    def _index(self) -> Shortcut:
        data, memo, integers = self._stream.data, self._stream.memo, self._stream.integers
        match = self._match(
            *(_NEW, self._reference("fqn"), _REF, self._reference("index"), _INT, self._sized("offset"), _END)
        )
        size, make = kinds.SIZE, kinds.index

        def take(at: int, stack: list[Any]) -> int:
            found = match(data, at)
            if found is None:
                return -1
            name, hint, raw = found.groups()
            offset = integers(size, raw)
            if offset is None:
                return -1
            made = make(_referred(memo, name), offset[-1], _integer(hint))
            memo.extend((made, _GONE, *offset))
            stack.append(made)
            return found.end()

        return take

    def _info(self) -> Shortcut:
        data, memo = self._stream.data, self._stream.memo
        plain = (
            *(_NEW, self._reference("relative_path"), _REF, self._reference("offset"), _INT),
            *(self._reference("length"), _INT),
        )
        if FACTS not in memo:
            match, facts = self._match(*plain, _END), None
        else:
            match = self._match(*plain)
            facts = self._match(self._reference(FACTS), rb"\(", _INT, _INT, _INT, rb"([\x88\x89])")
        make = kinds.info

        def take(at: int, stack: list[Any]) -> int:
            found = match(data, at)
            if found is None:
                return -1
            name, offset, length = found.groups()
            end, recorded = found.end(), None
            added: list[Any] = []
            if facts is not None:
                more = facts(data, end)
                if more is None:
                    return -1
                end, checksums, added = _checksums(data, more.end(), memo)
                version, first, size, flag = more.groups()
                if not data.startswith(b"t\x94ub", end):
                    return -1
                end += 4
                recorded = (
                    *(_integer(version), _integer(first), _integer(size)),
                    *(flag == b"\x88", checksums),
                )
                added.append(recorded)
            made = make(_referred(memo, name), _integer(offset), _integer(length), recorded)
            memo.extend((made, _GONE, *added))
            stack.append(made)
            return end

        return take

    def _properties(self) -> Shortcut:
        data, memo = self._stream.data, self._stream.memo
        match = self._match(rb"\)\x81\x94\(", _REF, _REF, rb"([\x88\x89])", _REF, rb"([\x88\x89])t\x94b")
        make = kinds.properties

        def take(at: int, stack: list[Any]) -> int:
            found = match(data, at)
            if found is None:
                return -1
            dtype, layout, grad, encoding, pinned = found.groups()
            state = (
                *(_referred(memo, dtype), _referred(memo, layout), grad == b"\x88"),
                *(_referred(memo, encoding), pinned == b"\x88"),
            )
            made = make(state)
            memo.extend((made, state))
            stack.append(made)
            return found.end()

        return take


def _referred(memo: list[Any], opcode: bytes) -> Any:
    return memo[opcode[1]] if len(opcode) == 2 else memo[_UINT32(opcode, 1)[0]]


def _integer(opcode: bytes) -> int:
    code = opcode[0]
    if code == 0x4B:
        return opcode[1]
    if code == 0x8A:
        return int.from_bytes(opcode[2:], "little", signed=True)
    return int.from_bytes(opcode[1:], "little", signed=code == 0x4A)


def _checksums(data: bytes, at: int, memo: list[Any]) -> tuple[int, Any, list[Any]]:
    """Bytes that are given or referred to: where the stream goes on, they, and what they add to the memo."""
    code = data[at]
    if code == 0x43:
        end = at + 2 + data[at + 1]
        value = data[at + 2 : end]
        if data[end] != 0x94:
            return -1, None, []
        return end + 1, value, [value]
    if code in (0x68, 0x6A):
        end = at + (2 if code == 0x68 else 5)
        return end, _referred(memo, data[at:end]), []
    return -1, None, []
