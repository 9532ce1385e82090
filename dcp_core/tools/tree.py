"""The tensors and objects of a checkpoint as a tree of dotted names. Pure.

The names of a state dict come from a bucket: a tree is at most ``DEEPEST`` levels deep, and no function here
calls itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dcp_core.tools.places import rank_of

__all__ = ["Leaf", "Node", "leaves", "tree"]

DEEPEST = 32


@dataclass(frozen=True)
class Leaf:
    """One tensor or object.

    Attributes:
        kind: "tensor" or "object".
        dtype: of a tensor, without "torch."; empty for an object.
        shape: of the whole tensor; ``None`` for an object.
        size: bytes of a tensor's elements; for an object, of its frame.
        chunks: pieces that it is stored in.
        ranks: those that wrote them, as far as names of objects tell.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...] | None
    size: int
    chunks: int
    ranks: frozenset[int]


@dataclass
class Node:
    """Everything whose names begin alike: a line of the tree.

    Attributes:
        name: the whole dotted name.
        label: its last part, or the rest of a name that is too deep.
        depth: from 0.
        leaf: the tensor or object of exactly this name.
        dtypes: of the tensors here and below.
        items: tensors and objects here and below.
        size: their bytes.
        chunks: theirs.
        ranks: those that wrote them.
    """

    name: str
    label: str
    depth: int
    leaf: Leaf | None = None
    dtypes: set[str] = field(default_factory=set)
    items: int = 0
    size: int = 0
    chunks: int = 0
    ranks: set[int] = field(default_factory=set)
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, leaf: Leaf) -> None:
        """Count ``leaf`` in."""
        self.dtypes |= {leaf.dtype} if leaf.dtype else set()
        self.items += 1
        self.size += leaf.size
        self.chunks += leaf.chunks
        self.ranks |= leaf.ranks

    def folded(self, depth: int | None) -> Iterator[Node]:
        """This node's lines below it, in order, down to ``depth`` levels."""
        left = [iter(self.children.values())]
        while left:
            node = next(left[-1], None)
            if node is None:
                left.pop()
                continue
            yield node
            if depth is None or node.depth + 1 < depth:
                left.append(iter(node.children.values()))


def leaves(metadata: Metadata) -> Iterator[Leaf]:
    """Everything in a checkpoint, by name."""
    for name, entry in sorted(metadata.state_dict_metadata.items()):
        if not isinstance(entry, TensorStorageMetadata):
            info = metadata.storage_data.get(MetadataIndex(name))
            size = 0 if info is None else info.length
            yield Leaf(name, "object", "", None, size, 1, _ranks([info]))
            continue
        dtype, shape = entry.properties.dtype, tuple(entry.size)
        infos = [metadata.storage_data.get(MetadataIndex(name, chunk.offsets)) for chunk in entry.chunks]
        size = math.prod(shape) * dtype.itemsize
        kind = str(dtype).removeprefix("torch.")
        yield Leaf(name, "tensor", kind, shape, size, len(entry.chunks), _ranks(infos))


def _ranks(infos: list[Any]) -> frozenset[int]:
    found = {rank_of(info.relative_path) for info in infos if info is not None}
    return frozenset(rank for rank in found if rank is not None)


def tree(found: Iterator[Leaf]) -> Node:
    """The root of the tree of ``found``."""
    root = Node("", "", -1)
    for leaf in found:
        node, name = root, ""
        root.add(leaf)
        for label in leaf.name.split(".", DEEPEST - 1):
            name = f"{name}.{label}" if node is not root else label
            if label not in node.children:
                node.children[label] = Node(name, label, node.depth + 1)
            node = node.children[label]
            node.add(leaf)
        node.leaf = leaf
    return root
