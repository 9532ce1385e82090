"""A deviation is declared, or it is a mistake."""

from __future__ import annotations

import pytest

from dcp_core.testing import StoreContract, deviates


def test_a_clause_is_not_replaced_in_silence() -> None:
    with pytest.raises(TypeError, match=r"Quiet.test_ranges replaces a clause.*@deviates"):

        class Quiet(StoreContract):
            def test_ranges(self) -> None:  # type: ignore[override]
                """Passes, and shows nothing."""

    with pytest.raises(TypeError, match=r"Removed.test_ranges"):

        class Removed(StoreContract):
            test_ranges = None  # type: ignore[assignment]


def test_a_deviation_from_nothing_is_a_mistake() -> None:
    with pytest.raises(TypeError, match=r"Stale.test_of_old deviates from a clause"):

        class Stale(StoreContract):
            @deviates("once there was such a clause")
            def test_of_old(self) -> None: ...


def test_a_deviation_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="reason"):
        deviates(" ")
