"""A pickle read as data: nothing is imported, called, hashed or compared on the word of the stream.

``pickle.Unpickler`` does what a stream says, whatever ``find_class`` admits: a BUILD on a class sets that
class's attributes, SETITEM hashes a key that may be tuples in tuples a million times over, PUT reserves
memory for the index it names. Here a stream is interpreted into plain values:

- a global is looked up in the caller's table, and stands for a :class:`Kind` or for a constant;
- an object of a kind is a :class:`Node`, whose value the kind makes, once, from the state of a BUILD;
- a dict is :class:`Pairs`, a set is :class:`Members`: lists, so that no key is hashed.

Each opcode costs time and memory in proportion to the bytes it takes off the stream, or to the values it
takes off the stack. Values may refer to one value many times, so who walks through the result has to count.

What is understood is what CPython's pickler writes for such values in protocols 2 to 5; for the opcodes, see
CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from dcp_core.format.inert import Kind, MalformedPickleError, Members, Node, Pairs
from dcp_core.format.shortcuts import Shortcuts

__all__ = ["unpickle"]

_INT32 = struct.Struct("<i").unpack_from
_UINT32 = struct.Struct("<I").unpack_from
_UINT16 = struct.Struct("<H").unpack_from
_DOUBLE = struct.Struct(">d").unpack_from
#: EMPTY_TUPLE NEWOBJ MEMOIZE EMPTY_DICT MEMOIZE MARK
_NEW_OBJECT = b")\x81\x94}\x94("
#: MEMOIZE TUPLE1 MEMOIZE REDUCE MEMOIZE
_CALL = b"\x94\x85\x94R\x94"
#: Bytes of the integers of a call with a tuple of them: 64 dimensions.
_LONGEST_CALL = 512
#: Bytes of an integer: a record's are offsets and sizes.
_LONGEST_INT = 9


def unpickle(data: bytes, start: int, table: Mapping[tuple[str, str], Any]) -> Any:
    """The value of the pickle at ``data[start:]``.

    Args:
        table: the globals that are admitted: a :class:`Kind`, or a constant.

    Raises:
        MalformedPickleError: the stream is cut short, goes on after its end, or is not as described above.
    """
    try:
        return _Machine(data, start, table).run()
    except (IndexError, struct.error) as error:
        raise MalformedPickleError("it is cut short, or damaged") from error
    except UnicodeDecodeError as error:
        raise MalformedPickleError("it has text that is none") from error
    except KeyError as error:
        raise MalformedPickleError(f"opcode {error} has no place in a commit record") from error


class _Machine:
    """The stack, the memo and the position in the stream.

    The stack is that above the last MARK; ``below`` has the others.
    """

    def __init__(self, data: bytes, start: int, table: Mapping[tuple[str, str], Any]) -> None:
        self.data = data
        self.at = start
        self.table = table
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: list[Any] = []
        #: What calls with integers came to, by their bytes: a record has the same few sizes many times.
        self.calls: dict[bytes, tuple[Kind, tuple[Any, ...]]] = {}
        self.shortcuts = Shortcuts(self)

    # A record of a million items has 10**8 opcodes. With a function for each, reading it takes twice as long.
    def run(self) -> Any:  # noqa: PLR0912, PLR0915
        """Interpret the stream to its end."""
        data, memo, below, operations = self.data, self.memo, self.below, _OPERATIONS
        at, stack, shortcuts = self.at, self.stack, self.shortcuts
        while True:
            code = data[at]
            at += 1
            if code == 0x68 or code == 0x6A:  # noqa: PLR1714  # BINGET, LONG_BINGET: a set is slower
                if code == 0x68:
                    value = memo[data[at]]
                    at += 1
                else:
                    value = memo[_UINT32(data, at)[0]]
                    at += 4
                if type(value) is not Kind:
                    stack.append(value)
                elif value in shortcuts and (end := shortcuts[value](at, stack)) >= 0:
                    at = end
                elif data.startswith(_NEW_OBJECT, at):
                    shortcuts.count(value)
                    at += len(_NEW_OBJECT)
                    made = (Node(value), Pairs())
                    memo += made
                    stack += made
                    below.append(stack)
                    stack = []
                else:
                    shortcuts.count(value)
                    stack.append(value)
                    if value.call is not None:
                        at = self.call_with_integers(value, at, stack)
            elif code == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif code == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif code == 0x75:  # SETITEMS
                values, stack = stack, below.pop()
                pairs = stack[-1]
                if type(pairs) is not Pairs or len(values) % 2:
                    raise MalformedPickleError("it adds pairs to something else than a dict")
                pairs += values
            elif code == 0x62:  # BUILD
                state = stack.pop()
                node = stack[-1]
                if type(node) is not Node or node.value is not None or node.kind.build is None:
                    raise MalformedPickleError("it sets the state of something else than a new object")
                node.value = node.kind.build(state)
            elif code == 0x4A:  # BININT
                stack.append(_INT32(data, at)[0])
                at += 4
            elif code == 0x4D:  # BININT2
                stack.append(_UINT16(data, at)[0])
                at += 2
            elif code == 0x28:  # MARK
                below.append(stack)
                stack = []
            elif code == 0x74:  # TUPLE
                values, stack = stack, below.pop()
                stack.append(tuple(values))
            elif code == 0x2E:  # STOP
                break
            else:
                self.at, self.stack = at, stack
                operations[code](self)
                at, stack = self.at, self.stack
        if below or len(stack) != 1 or at != len(data):
            raise MalformedPickleError("it does not end where it should")
        return stack[0]

    def call_with_integers(self, kind: Kind, at: int, stack: list[Any]) -> int:
        """Take a call of the kind on the stack with a tuple of integers, if one follows; returns where the
        stream goes on."""
        end = self.data.find(_CALL, at, at + _LONGEST_CALL)
        known = self.integers(kind, self.data[at:end]) if end >= 0 else None
        if known is None:
            return at
        self.memo += known
        stack[-1] = known[-1]
        return end + len(_CALL)

    def integers(self, kind: Kind, raw: bytes) -> tuple[Any, ...] | None:
        """What a call of ``kind`` with a tuple adds to the memo: the tuple, the arguments, and the result.

        ``None`` unless ``raw`` are the opcodes of a tuple of integers.
        """
        known = self.calls.get(raw)
        if known is None or known[0] is not kind:
            values = _integers(raw)
            if values is None or kind.call is None:
                return None
            known = self.calls[raw] = (kind, (values, (values,), kind.call((values,))))
        return known[1]

    # operands

    def bytes(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise MalformedPickleError("it is cut short")
        return self.data[start : self.at]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")

    def text(self, size: int) -> str:
        return str(self.bytes(self.uint(size)), "utf-8", "surrogatepass")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        return self.bytes(max(0, end - self.at) + 1)[:-1].decode()

    def top(self, kind: type[list[Any]]) -> list[Any]:
        """The list, dict or set that the opcode adds to."""
        found = self.stack[-1]
        if type(found) is not kind:
            raise MalformedPickleError(f"it adds to a {type(found).__name__} as to something else")
        return found

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    # opcodes

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self) -> None:
        if not 2 <= self.uint(1) <= 5:
            raise MalformedPickleError("it is of another protocol")

    def frame(self) -> None:
        if self.uint(8) > len(self.data) - self.at:
            raise MalformedPickleError("it is cut short")

    def long1(self) -> None:
        size = self.uint(1)
        if size > _LONGEST_INT:
            raise MalformedPickleError(f"it has an integer of {size} bytes")
        self.push(int.from_bytes(self.bytes(size), "little", signed=True))

    def put(self, width: int) -> None:
        if self.uint(width) != len(self.memo):
            raise MalformedPickleError("it numbers its values out of turn")
        self.memo.append(self.stack[-1])

    def tuple_of(self, size: int) -> None:
        stack = self.stack
        if len(stack) < size:
            raise MalformedPickleError("it takes more than there is")
        stack[-size:] = (tuple(stack[-size:]),)

    def append(self) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.top(Pairs).extend((key, value))

    def additems(self) -> None:
        values = self.since_mark()
        self.top(Members).extend(values)

    def frozenset(self) -> None:
        values = self.since_mark()
        self.push(Members(values))

    def global_by_lines(self) -> None:
        self.find(self.line(), self.line())

    def global_by_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.find(module, name)

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise MalformedPickleError("it names a global by something else than text")
        found = self.table.get((module, name))
        if found is None:
            raise MalformedPickleError(f"{module[:80]}.{name[:80]} has no place in a commit record")
        self.push(found)

    def new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Kind or kind.build is None or arguments != ():
            raise MalformedPickleError("it makes an object in a way that a commit record has no use for")
        self.push(Node(kind))

    def reduce(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Kind or kind.call is None or type(arguments) is not tuple:
            raise MalformedPickleError("it calls what is not to be called")
        self.push(kind.call(arguments))


def _integers(raw: bytes) -> tuple[int, ...] | None:
    """The tuple that these opcodes make, if they make one of integers."""
    at = marked = int(raw[:1] == b"(")
    values: list[int] = []
    while at + 1 < len(raw):
        code = raw[at]
        if code == 0x4B:
            values.append(raw[at + 1])
            at += 2
        elif code == 0x4D and at + 3 < len(raw):
            values.append(_UINT16(raw, at + 1)[0])
            at += 3
        elif code == 0x4A and at + 5 < len(raw):
            values.append(_INT32(raw, at + 1)[0])
            at += 5
        else:
            return None
    last = 0x74 if marked else {1: 0x85, 2: 0x86, 3: 0x87}.get(len(values))
    return tuple(values) if at + 1 == len(raw) and raw[at] == last else None


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    0x4E: lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    0x8A: _Machine.long1,
    0x47: lambda machine: machine.push(_DOUBLE(machine.bytes(8))[0]),
    0x8C: lambda machine: machine.push(machine.text(1)),
    0x58: lambda machine: machine.push(machine.text(4)),
    0x43: lambda machine: machine.push(machine.bytes(machine.uint(1))),
    0x42: lambda machine: machine.push(machine.bytes(machine.uint(4))),
    0x29: lambda machine: machine.push(()),
    0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2),
    0x87: lambda machine: machine.tuple_of(3),
    0x5D: lambda machine: machine.push([]),
    0x61: _Machine.append,
    0x65: _Machine.appends,
    0x7D: lambda machine: machine.push(Pairs()),
    0x73: _Machine.setitem,
    0x8F: lambda machine: machine.push(Members()),
    0x90: _Machine.additems,
    0x91: _Machine.frozenset,
    0x63: _Machine.global_by_lines,
    0x93: _Machine.global_by_stack,
    0x81: _Machine.new,
    0x52: _Machine.reduce,
    0x71: lambda machine: machine.put(1),
    0x72: lambda machine: machine.put(4),
}
