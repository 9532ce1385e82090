"""A table of tensors of every kind: how each is made of dense values, and how it shows them."""

from __future__ import annotations

import mmap
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

Make = Callable[[torch.Tensor], torch.Tensor]
Show = Callable[[torch.Tensor], torch.Tensor]

VALUES = torch.arange(1.0, 25.0).view(4, 6)
#: Elements of a tensor larger than the pieces that a load cuts tensors into (4 MiB).
LARGE = torch.arange(1300 * 1100, dtype=torch.float32).view(1300, 1100)

_functorch: Any = torch._C._functorch


class _Bare(torch.Tensor):
    """A wrapper: no memory of its own, another tensor inside."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Bare:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"{type(self).__name__}({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.inner,)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.before(func)
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            return args[0]
        wrapped = tree_map(lambda x: cls(x) if type(x) is torch.Tensor else x, found)
        return return_and_correct_aliasing(func, args, kwargs or {}, wrapped)

    @classmethod
    def before(cls, func: Any) -> None:
        """Refuse what a subclass cannot do."""


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _Bare) else value


class Wrapper(_Bare):
    """Copies as any tensor does."""


class WrapperWithoutCopy(_Bare):
    @classmethod
    def before(cls, func: Any) -> None:
        if func is torch.ops.aten.copy_.default:
            raise NotImplementedError("no copy_")


class WholeWrapper(_Bare):
    """Takes all its elements at once, as one that computes a scale from them has to."""

    @classmethod
    def before(cls, func: Any) -> None:
        if func in (torch.ops.aten.slice.Tensor, torch.ops.aten.select.int, torch.ops.aten.view.default):
            raise NotImplementedError("no slices")


class HelplessWrapper(_Bare):
    @classmethod
    def before(cls, func: Any) -> None:
        raise NotImplementedError(f"no {func}")


class Plain(torch.Tensor):
    """Changes nothing."""


class WithFunction(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class ShowsNegated(torch.Tensor):
    """Shows the negated values of its memory, and is told so by ``copy_``."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:  # type: ignore[override]
        if isinstance(source, ShowsNegated):
            source = source.shown()
        self.as_subclass(torch.Tensor).copy_(source.as_subclass(torch.Tensor).neg())
        return self

    def shown(self) -> torch.Tensor:
        return self.detach().as_subclass(torch.Tensor).neg()


class WithDispatch(torch.Tensor):
    """Has memory of its own, and sees each operation."""

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> WithDispatch:
        return torch.Tensor._make_subclass(cls, data)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            found = func(*args, **(kwargs or {}))
        return tree_map(lambda x: cls(x) if type(x) is torch.Tensor else x, found)


#: The subclasses above, which stock torch pickles by name.
TYPES: list[Any] = [Wrapper, WrapperWithoutCopy, WholeWrapper, HelplessWrapper, Plain, WithFunction]
TYPES += [ShowsNegated, WithDispatch]


class Kind(NamedTuple):
    """How to make a tensor of this kind from dense values, and how to get them back."""

    make: Make
    show: Show = lambda tensor: tensor.detach()
    values: torch.Tensor = VALUES
    #: what the tensor is made, saved and loaded inside of
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def full(name: str) -> torch.Tensor:
    """A tensor of the kind ``name`` that holds the kind's values."""
    kind = KINDS[name]
    return _quietly(kind.make, raw_bytes(kind.values).clone().view(kind.values.dtype).view(kind.values.shape))


def blank(name: str) -> torch.Tensor:
    """One that holds zeros."""
    kind = KINDS[name]
    return _quietly(
        kind.make, torch.zeros_like(raw_bytes(kind.values)).view(kind.values.dtype).view(kind.values.shape)
    )


def _quietly(make: Make, values: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(values)


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the elements in C order."""
    return (
        tensor.contiguous().view(-1).view(torch.uint8)
        if tensor.numel()
        else torch.empty(0, dtype=torch.uint8)
    )


def _compressed(layout: torch.layout) -> Make:
    size = (2, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    return lambda values: values.to_sparse(layout=layout, blocksize=size)


def _to_dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to_dense()


def _fake(values: torch.Tensor) -> torch.Tensor:
    return FakeTensorMode().from_tensor(values)


def _nested(layout: torch.layout) -> Kind:
    def show(tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.detach() for row in tensor.unbind()])

    return Kind(lambda values: torch.nested.nested_tensor(list(values), layout=layout), show)


def _masked(values: torch.Tensor) -> torch.Tensor:
    return torch.masked.masked_tensor(values, torch.ones_like(values, dtype=torch.bool))  # type: ignore[no-any-return]


def _per_tensor(values: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(values, 0.5, 0, torch.qint8)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    scales, zeros = torch.full((len(values),), 0.5), torch.zeros(len(values), dtype=torch.int64)
    return torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8)


@contextmanager
def _grad_level() -> Iterator[None]:
    """What ``torch.func.grad`` calls a function inside of."""
    _functorch._grad_increment_nesting()
    try:
        yield
    finally:
        _functorch._grad_decrement_nesting()


def _imaginary(values: torch.Tensor) -> torch.Tensor:
    return torch.complex(torch.zeros_like(values), values.neg()).conj().imag


def _inner_values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inner  # type: ignore[attr-defined,no-any-return]


def _as_plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_subclass(torch.Tensor)


def _uninitialized(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.UninitializedParameter()


def _inference(values: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return values.clone()


def _resized(tensor: torch.Tensor, size: int) -> torch.Tensor:
    tensor.untyped_storage().resize_(size)
    return tensor


def _slice_of_freed(values: torch.Tensor) -> torch.Tensor:
    base = torch.cat([values, values])
    part = base[4:]
    _resized(base, 0)
    return part


def _slice(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full((2, 6), 7.0), values, torch.full((1, 6), 8.0)])[2:6]


def _every_other(values: torch.Tensor) -> torch.Tensor:
    return values.repeat_interleave(2, dim=1)[:, ::2]


def _shared_file(values: torch.Tensor) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        mapped = torch.from_file(f"{folder}/tensor", shared=True, size=values.numel()).view(values.shape)
    return mapped.copy_(values)


def _read_only_file(values: torch.Tensor) -> torch.Tensor:
    with tempfile.TemporaryFile() as file:
        file.write(values.numpy().tobytes())
        file.flush()
        memory = mmap.mmap(file.fileno(), values.nbytes, access=mmap.ACCESS_READ)
    return torch.frombuffer(memory, dtype=values.dtype).view(values.shape)


def _flagged(values: torch.Tensor) -> torch.Tensor:
    array = values.numpy()
    array.flags.writeable = False
    return torch.from_numpy(array)


def _unaligned(values: torch.Tensor) -> torch.Tensor:
    memory = bytearray(b"\0" + values.numpy().tobytes())
    return torch.frombuffer(memory, dtype=values.dtype, offset=1).view(values.shape)


def _waiting(values: torch.Tensor) -> torch.Tensor:
    return AsyncCollectiveTensor(values)


def _like(values: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """``values`` at other strides, which make elements share memory where they coincide."""
    reach = 1 + sum((size - 1) * step for size, step in zip(values.shape, stride, strict=True))
    found = torch.zeros(reach, dtype=values.dtype).as_strided(values.shape, stride)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in values.shape)).tolist():
        found[tuple(index)] = values[tuple(index)]
    return found


def _overlapping_values() -> torch.Tensor:
    return torch.arange(1.0, 16.0).as_strided((4, 6), (3, 1)).clone()


def _of(name: str) -> Kind:
    """Tensors of one dtype, of whatever bits."""
    dtype: torch.dtype = getattr(torch, name)
    raw = torch.arange(1, 1 + 24 * dtype.itemsize, dtype=torch.uint8)
    raw = raw & 1 if dtype is torch.bool else raw
    return Kind(lambda values: values, values=raw.view(dtype).view(4, 6))


_DTYPES = [
    *("bool", "uint8", "int8", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float64"),
    *("float8_e4m3fn", "float8_e5m2", "complex32", "complex64", "complex128", "float8_e8m0fnu"),
    *("int4", "uint4", "uint1", "bits8", "quint8", "float4_e2m1fn_x2"),
]

KINDS: dict[str, Kind] = {
    "dense": Kind(torch.clone),
    "sparse coo": Kind(torch.Tensor.to_sparse, _to_dense),
    "sparse csr": Kind(_compressed(torch.sparse_csr), _to_dense),
    "sparse csc": Kind(_compressed(torch.sparse_csc), _to_dense),
    "sparse bsr": Kind(_compressed(torch.sparse_bsr), _to_dense),
    "sparse bsc": Kind(_compressed(torch.sparse_bsc), _to_dense),
    "mkldnn": Kind(torch.Tensor.to_mkldnn, _to_dense),
    "nested": _nested(torch.strided),
    "nested jagged": _nested(torch.jagged),
    "masked": Kind(_masked, lambda tensor: tensor.detach().get_data()),  # type: ignore[attr-defined]
    "quantized per tensor": Kind(_per_tensor, torch.Tensor.dequantize),
    "quantized per channel": Kind(_per_channel, torch.Tensor.dequantize),
    "slice of a quantized one": Kind(
        lambda values: _per_tensor(torch.cat([values, values]))[4:], torch.Tensor.dequantize
    ),
    "meta": Kind(lambda values: values.to("meta")),
    "fake": Kind(_fake),
    "functional": Kind(torch._to_functional_tensor, torch._from_functional_tensor),
    "batched": Kind(lambda values: _functorch._add_batch_dim(values, 0, 1), _functorch.get_unwrapped),
    "inside torch.func.grad": Kind(
        lambda values: _functorch._wrap_for_grad(values, 1), _functorch.get_unwrapped, around=_grad_level
    ),
    "conjugated": Kind(
        lambda values: values.conj().resolve_conj().conj(), values=torch.complex(VALUES, -VALUES)
    ),
    "negated": Kind(lambda values: torch._neg_view(values.neg())),
    "imaginary part of a conjugate": Kind(_imaginary),
    "wrapper": Kind(Wrapper, _inner_values),
    "parameter of a wrapper": Kind(lambda values: torch.nn.Parameter(Wrapper(values)), _inner_values),
    "wrapper without copy_": Kind(WrapperWithoutCopy, _inner_values),
    "wrapper that takes whole tensors": Kind(WholeWrapper, _inner_values),
    "wrapper that can do nothing": Kind(HelplessWrapper, _inner_values),
    "subclass that changes nothing": Kind(lambda values: values.as_subclass(Plain), _as_plain),
    "subclass with a function": Kind(lambda values: values.as_subclass(WithFunction), _as_plain),
    "subclass that shows something else": Kind(
        lambda values: values.neg().as_subclass(ShowsNegated), ShowsNegated.shown
    ),
    "subclass with a dispatch": Kind(WithDispatch, _as_plain),
    "subclass that was freed": Kind(lambda values: _resized(values.as_subclass(WithFunction), 0), _as_plain),
    "parameter": Kind(torch.nn.Parameter),
    "buffer": Kind(torch.nn.Buffer),
    "uninitialized": Kind(_uninitialized),
    "leaf that requires grad": Kind(lambda values: values.requires_grad_()),
    "inner node of a graph": Kind(lambda values: values.requires_grad_() * 1),
    "inference": Kind(_inference),
    "freed": Kind(lambda values: _resized(values, 0)),
    "shrunk": Kind(lambda values: _resized(values, 8)),
    "slice of a freed one": Kind(_slice_of_freed),
    "slice": Kind(_slice),
    "transposed": Kind(lambda values: values.t().contiguous().t()),
    "every other column": Kind(_every_other),
    "large and transposed": Kind(lambda values: values.t().contiguous().t(), values=LARGE),
    "expanded": Kind(lambda values: values[:1].clone().expand(4, 6), values=VALUES[:1].expand(4, 6).clone()),
    "overlapping": Kind(lambda values: _like(values, (3, 1)), values=_overlapping_values()),
    "strides that do not nest": Kind(lambda values: _like(values, (3, 2)), values=VALUES[:2, :3].clone()),
    "channels last": Kind(
        lambda values: values.contiguous(memory_format=torch.channels_last), values=VALUES.view(2, 3, 2, 2)
    ),
    "0-d": Kind(torch.clone, values=torch.tensor(3.5)),
    "empty": Kind(torch.clone, values=torch.empty(0, 6)),
    "empty and sparse": Kind(torch.Tensor.to_sparse, _to_dense, torch.empty(0, 6)),
    "shared memory": Kind(torch.Tensor.share_memory_),
    "mapped file": Kind(_shared_file),
    "mapped for reading only": Kind(_read_only_file),
    "flagged as read-only": Kind(_flagged),
    "unaligned": Kind(_unaligned),
    "asynchronous collective": Kind(_waiting, lambda tensor: tensor.wait()),  # type: ignore[attr-defined]
    **{f"of {name}": _of(name) for name in _DTYPES},
}


def holds(name: str, tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` shows the values of the kind ``name``, bit for bit."""
    kind = KINDS[name]
    shown = kind.show(tensor).detach().resolve_conj().resolve_neg()
    return shown.shape == kind.values.shape and torch.equal(raw_bytes(shown), raw_bytes(kind.values))
