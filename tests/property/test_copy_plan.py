"""Pieces of a copy: each byte once, and each block with a checksum whole in every piece that it touches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dcp_core.tools.copy_plan import cut, shares
from dcp_core.upkeep.frame_checks import Span


@st.composite
def objects(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """An object's size, and blocks in order with gaps between some of them."""
    at, blocks = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=20)):
        blocks.append(Span(at + gap, at + gap + length, 0))
        at += gap + length
    return at + draw(st.integers(0, 9)), blocks


@given(objects(), st.integers(1, 40))
def test_pieces(found: tuple[int, list[Span]], part_size: int) -> None:
    size, blocks = found
    pieces = list(cut(size, part_size, blocks))
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    assert [piece.start for piece in pieces] == list(range(0, max(size, 1), part_size))
    assert [piece.stop for piece in pieces] == [min(size, piece.start + part_size) for piece in pieces]
    for piece in pieces:
        touching = [one for one in blocks if one.start < piece.stop and one.stop > piece.start]
        assert list(piece.spans) == touching
        assert piece.first == min([piece.start, *(one.start for one in touching)])
        assert piece.last == max([piece.stop, *(one.stop for one in touching)])
        assert 0 <= piece.first <= piece.start
        assert piece.stop <= piece.last <= size


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100), max_size=20), st.integers(1, 7))
def test_shares(sizes: dict[str, int], count: int) -> None:
    found = shares(sizes, count)
    assert len(found) == count
    assert sorted(name for share in found for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in found]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    assert shares(dict(reversed(sizes.items())), count) == found
