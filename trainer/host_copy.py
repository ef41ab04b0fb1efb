"""Copies from the device to the host that nobody waits for: started now, read later."""

from collections.abc import Mapping

import numpy as np
import torch


class AsyncHostCopy:
    """One tensor: on CUDA it is copied to pinned host memory behind what the device still has to do, elsewhere it is read where it lies."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def is_asynchronous(self) -> bool:
        """Whether reading it may have to wait for the device."""
        return self._arrived is not None

    def read(self) -> torch.Tensor:
        """The tensor on the host, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


class NamedHostCopy:
    """Tensors by name, sent as one."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors` have one dimension each, and lie on one device; their values of now are what is read."""
        self._sizes = {name: len(tensor) for name, tensor in tensors.items()}
        self._copy = AsyncHostCopy(torch.cat(list(tensors.values())))

    def read(self) -> dict[str, np.ndarray]:
        """The values of each, by name; waits where they have not arrived yet."""
        ends = np.cumsum(list(self._sizes.values()))
        return dict(zip(self._sizes, np.split(self._copy.read().numpy(), ends[:-1]), strict=True))
