"""The encoders' caches: one tensor per layer, bound as input and output of the same run.

C cues, S slots, W ring places, D values of a row. The graph writes rows with ScatterND, which
copies nothing where input and output are one buffer: a run costs the same with 17 slots and with 65
(ONNX Runtime 1.31, CPU). On the CPU the tensors are NumPy arrays that ONNX Runtime reads and writes
where they lie; on a device they stay there, and reading or writing one slot moves the whole pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


class StatePool:
    """Memory of all slots' caches, zeros at first."""

    def __init__(self, names: tuple[str, ...], shape: tuple[int, ...], provider: str) -> None:
        """Allocate it.

        Args:
            names: A tensor per layer; the graph's outputs are called the same with `_out`.
            shape: Of each, (C, S + 1, W, D); the last slot takes what is to be forgotten.
            provider: Execution provider that will run the graph.
        """
        self.names = names
        self._shape = shape
        self._device = _DEVICES.get(provider, "cpu")
        self._host: dict[str, NDArray[np.float32]] = {}
        self._there: dict[str, Any] = {}
        for name in names:
            zeros = np.zeros(shape, np.float32)
            if self._device == "cpu":
                self._host[name] = zeros
            else:
                self._there[name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self._device, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return len(self.names) * 4 * int(np.prod(self._shape))

    def bind(self, binding: Any) -> None:
        """Bind every tensor to its input and its output."""
        for name in self.names:
            if self._device == "cpu":
                own = self._host[name]
                place = ("cpu", 0, np.float32, list(self._shape), own.ctypes.data)
                binding.bind_input(name, *place)
                binding.bind_output(f"{name}_out", *place)
            else:
                binding.bind_ortvalue_input(name, self._there[name])
                binding.bind_ortvalue_output(f"{name}_out", self._there[name])

    def read(self, slot: int) -> NDArray[np.float32]:
        """A slot's rows, float32 (layers, C, W, D), a copy."""
        tensors = (
            self._host[name] if self._device == "cpu" else self._there[name].numpy()
            for name in self.names
        )
        return np.stack([tensor[:, slot] for tensor in tensors])

    def write(self, slot: int, rows: NDArray[np.float32]) -> None:
        """Replace a slot's rows.

        Args:
            slot: Which.
            rows: float32 (layers, C, W, D), or what broadcasts to it.
        """
        wanted = (len(self.names), self._shape[0], *self._shape[2:])
        for name, own in zip(self.names, np.broadcast_to(rows, wanted), strict=True):
            if self._device == "cpu":
                self._host[name][:, slot] = own
            else:
                whole = self._there[name].numpy()
                whole[:, slot] = own
                self._there[name].update_inplace(whole)
