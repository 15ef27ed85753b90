"""Memory for large observations, used again only once nobody holds it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 2**17  # bytes; below this a fresh array is as cheap (malloc maps larger ones)


class Buffers:
    """Gathers rows of a table into arrays that the caller may keep.

    A megabyte of fresh memory costs several times the copy into it (the kernel zeroes pages),
    so arrays are handed out again when their reference count says that the caller has let go
    of them and of every view of them. Whoever keeps an observation keeps its memory. Where
    the interpreter counts differently, the count is merely too high and the array is fresh.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], list[NDArray[Any]]] = {}
        self._idle = self._count([np.empty(0)], 0)

    @staticmethod
    def _count(arrays: list[NDArray[Any]], i: int) -> int:
        return sys.getrefcount(arrays[i])

    def take(self, table: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
        """Returns ``table[index]`` in memory that nobody else holds."""
        if table.strides[0] * index.size < _SMALL:
            return table.take(index, axis=0)
        shape = index.shape + table.shape[1:]
        out = self._free((id(table), *shape), shape, table.dtype)
        # mode="clip" writes into ``out`` directly; indices come from the core, in range.
        return table.take(index, axis=0, out=out, mode="clip")

    def _free(
        self, key: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        arrays = self._kept.setdefault(key, [])
        for i in range(len(arrays)):
            if self._count(arrays, i) <= self._idle:
                return arrays[i]
        fresh = np.empty(shape, dtype)
        if len(arrays) < 4:
            arrays.append(fresh)
        return fresh
