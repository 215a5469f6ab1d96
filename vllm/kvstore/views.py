"""Memory of tensors as NumPy arrays and torch tensors that share it; torch only if asked."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.kvstore.native import library


def addresses(array: Any, layers: int, tensor_bytes: int) -> npt.NDArray[np.uint64]:
    """Where the tensors of an array `[tokens, layers, 2, ...]` begin, as `[tokens, layers, 2]`.

    NumPy's or torch's (on the CPU), with any strides in the first three axes. Raises ValueError
    when a tensor is not `tensor_bytes` of contiguous memory.
    """
    shape = tuple(array.shape)
    if hasattr(array, "data_ptr"):  # torch's, which may have a dtype that NumPy lacks
        if array.device.type != "cpu":
            raise ValueError(f"the tensor is on {array.device}, not on the CPU")
        base, size = array.data_ptr(), array.element_size()
        strides = tuple(step * size for step in array.stride())
    else:
        base, size, strides = array.ctypes.data, array.itemsize, array.strides
    if len(shape) < 3 or shape[1:3] != (layers, 2):
        raise ValueError(f"the array is not [tokens, {layers}, 2, ...] but {list(shape)}")
    expected = size
    for length, stride in zip(shape[:2:-1], strides[:2:-1], strict=True):
        if length != 1 and stride != expected:
            raise ValueError("a tensor of the array is not contiguous")
        expected *= length
    if expected != tensor_bytes:
        raise ValueError(f"a tensor of the array has {expected} bytes, not {tensor_bytes}")
    steps = [
        np.arange(n, dtype=np.int64) * step for n, step in zip(shape[:3], strides[:3], strict=True)
    ]
    pair = (base + steps[1])[:, None] + steps[2]
    addresses: npt.NDArray[np.uint64] = (steps[0][:, None, None] + pair).view(np.uint64)
    return addresses


def numpy_view(tensor: Any, dtype: Any, shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """A KVTensor's memory as an array; it keeps what was found where it is. Nothing is copied."""
    flat = np.frombuffer(tensor, dtype=dtype)
    return flat if shape is None else flat.reshape(shape)


def torch_view(tensor: Any, dtype: Any, shape: Sequence[int] | None = None) -> Any:
    """The same as a torch tensor; `dtype` is torch's.

    Torch has no read-only tensors: writing to what was found in place ends the process, since its
    pages cannot be written.
    """
    torch: Any = importlib.import_module("torch")
    memory: Any = (ctypes.c_char * tensor.length).from_address(tensor.data)
    memory.owner = tensor  # torch keeps the memory object, which keeps the lease
    flat = torch.frombuffer(memory, dtype=dtype)
    return flat if shape is None else flat.reshape(list(shape))


class Match:
    """What was found in shared memory, in place: of `count` tokens, `[layers, 2]` tensors each.

    It stays as it is until `release()`, or until this and all views of it are gone.
    """

    def __init__(
        self,
        count: int,
        where: npt.NDArray[np.uint64],
        lease: Any,
        shape: tuple[int, int],
    ) -> None:
        """`where`: the address of each token's tensors; `shape`: layers, bytes of a tensor."""
        self.count = count
        self._where = where[:count]
        self._lease = lease
        self._layers, self._tensor_bytes = shape

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        """Of each tensor: uint64 `[count, layers, 2]`."""
        steps = np.arange(self._layers * 2, dtype=np.uint64) * np.uint64(self._tensor_bytes)
        return (self._where[:, None] + steps).reshape(self.count, self._layers, 2)

    def tensor(self, token: int, layer: int, value: int) -> Any:
        """The KVTensor of K (`value` 0) or V (1). Raises IndexError."""
        if not (0 <= token < self.count and 0 <= layer < self._layers and 0 <= value < 2):
            raise IndexError(f"there is no tensor [{token}, {layer}, {value}]")
        at = int(self._where[token]) + (layer * 2 + value) * self._tensor_bytes
        return library().KVTensor(at, self._tensor_bytes, self._lease)

    def numpy(self, token: int, dtype: Any, shape: Sequence[int]) -> npt.NDArray[Any]:
        """A token's tensors as `[layers, 2, *shape]`."""
        return numpy_view(self._token(token), dtype, [self._layers, 2, *shape])

    def torch(self, token: int, dtype: Any, shape: Sequence[int]) -> Any:
        """A token's tensors as `[layers, 2, *shape]`, torch's."""
        return torch_view(self._token(token), dtype, [self._layers, 2, *shape])

    def _token(self, token: int) -> Any:
        """All of a token's tensors, which lie one behind the other."""
        size = self._layers * 2 * self._tensor_bytes
        at = int(self._where[range(self.count)[token]])
        return library().KVTensor(at, size, self._lease)

    def release(self) -> None:
        """Views must not be read any more."""
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> Match:
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()
