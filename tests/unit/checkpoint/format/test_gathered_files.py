"""Each rank loads its part of files that hold everything; that the parts come from several ranks is tests/acceptance/test_sharded.py's."""

import pytest
import torch
from safetensors.torch import save_file

from tests.messages import refuses
from tests.small_runs import Small
from trainer.checkpoint.format.gathered_files import GatheredFiles, _load_weights
from trainer.checkpoint.format.store import CheckpointStore
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_saved_comes_back_also_where_one_process_holds_it_all(tmp_path, asynchronous):
    store = CheckpointStore(tmp_path / "checkpoints" / "run")
    run = Small(store, CheckpointConfig(asynchronous=asynchronous), layout=GatheredFiles())
    run.step()
    run.save("final")
    run.checkpointer.end(wait_for_copies=False)
    again = Small(store, layout=GatheredFiles())
    again.resume()
    assert again.everything() == run.everything()
    plain = Small(store)
    plain.resume()
    assert plain.everything() == run.everything()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.zeros(2, 3)}, ["lacks bias"]),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)}, ["scale"]),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, ["weight", "shape"]),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "model.safetensors")
    with refuses(CheckpointError, *words):
        _load_weights(tmp_path / "model.safetensors", torch.nn.Linear(3, 2))
