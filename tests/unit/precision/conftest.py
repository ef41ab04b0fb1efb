import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import TERecipeKwargs

from tests import emulation
from tests.accelerators import forget_accelerator


@pytest.fixture
def stand_in():
    """The tests' emulation of TransformerEngine, as if it were installed."""
    emulation.install()
    import transformer_engine.pytorch as te

    te.RAN.clear()
    yield te
    emulation.uninstall()


@pytest.fixture
def fp8_accelerator(stand_in):
    """An Accelerator under mixed_precision fp8, and none left behind."""
    forget_accelerator()
    yield Accelerator(cpu=True, mixed_precision="fp8", kwargs_handlers=[TERecipeKwargs()])
    forget_accelerator()


@pytest.fixture
def tokens():
    return torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(3))
