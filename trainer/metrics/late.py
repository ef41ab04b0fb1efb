"""Numbers on their way from the device to the host: sent now, read late, and nothing waits in between."""

from collections.abc import Mapping

import numpy as np
import torch


class Late:
    """Tensors by name, sent as one: on CUDA they are copied to pinned host memory behind what the device still has to do."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors` have one dimension each, and lie on one device; their values of now are what is read."""
        self._sizes = {name: len(tensor) for name, tensor in tensors.items()}
        self._host, self._arrived = torch.cat(list(tensors.values())), None
        if self._host.device.type == "cuda":
            device, self._host = self._host, torch.empty(self._host.shape, dtype=self._host.dtype, pin_memory=True)
            self._host.copy_(device, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, np.ndarray]:
        """The values of each, by name; waits where they have not arrived yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ends = np.cumsum(list(self._sizes.values()))
        return dict(zip(self._sizes, np.split(self._host.numpy(), ends[:-1]), strict=True))
