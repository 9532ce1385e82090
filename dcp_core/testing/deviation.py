"""Deviations from the contract: declared with a reason, checked when the class is made, and listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dcp_core.testing.material import ODD_KEYS

__all__ = ["Contract", "deviates", "deviations"]

_Test = TypeVar("_Test", bound=Callable[..., None])
_REASON = "deviates"


def deviates(reason: str) -> Callable[[_Test], _Test]:
    """Mark a test that replaces one of the contract's: it asserts what the store does instead, and why.

    ::

        class TestMyStore(StoreContract):
            @deviates("keys are paths: the listing folds double slashes")
            def test_odd_keys(self, store, raw): ...
    """
    if not reason.strip():
        raise ValueError("a deviation needs a reason")

    def mark(test: _Test) -> _Test:
        test.__dict__[_REASON] = reason
        return test

    return mark


def deviations(contract: type[Contract]) -> dict[str, str]:
    """The deviations that a subclass of a contract declares: test name → reason."""
    tests = {name: getattr(contract, name) for name in dir(contract) if name.startswith("test_")}
    return {name: test.__dict__[_REASON] for name, test in tests.items() if _REASON in test.__dict__}


class Contract:
    """Base of the contract's classes. A clause is only replaced where :func:`deviates` says why.

    Raises:
        TypeError: a subclass replaces or removes a clause without saying why, or declares a deviation from
            a clause that does not exist, as after a change of its name.
    """

    #: Keys that the store must keep apart and give back as they are.
    odd_keys: Sequence[str] = ODD_KEYS

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, test in vars(cls).items():
            clause = _clause(cls, name)
            declared = _REASON in getattr(test, "__dict__", {})
            if clause and not declared:
                raise TypeError(
                    f"{cls.__name__}.{name} replaces a clause of the contract: mark it @deviates(reason)"
                )
            if declared and not clause:
                raise TypeError(
                    f"{cls.__name__}.{name} deviates from a clause that the contract does not have"
                )


def _clause(cls: type, name: str) -> bool:
    """Whether ``name`` is a test that ``cls`` inherits from a contract."""
    inherited = (base for base in cls.__mro__[1:] if issubclass(base, Contract))
    return name.startswith("test_") and any(name in vars(base) for base in inherited)
