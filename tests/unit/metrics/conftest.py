import pytest
from accelerate import Accelerator


@pytest.fixture
def accelerator(tmp_path):
    """A real Accelerator on the CPU that writes TensorBoard events under the test's folder."""
    return Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
