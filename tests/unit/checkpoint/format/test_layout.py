"""Saving and restoring know the files of a checkpoint only through the layout that their context has."""

import pytest
import torch

from tests.small_runs import Small
from trainer.checkpoint.format.whole_files import WholeFiles
from trainer.config.schema import CheckpointConfig


class OneFile(WholeFiles):
    """All weights in a file of another name, written while training waits; the rest as today."""

    def write(self, folder, *run):
        super().write(folder, *run)
        (folder / "model.safetensors").rename(folder / "weights.part-0")

    def load(self, folder, accelerator, model, optimizer):
        (folder / "weights.part-0").rename(folder / "model.safetensors")
        super().load(folder, accelerator, model, optimizer)
        (folder / "model.safetensors").rename(folder / "weights.part-0")

    def small_files(self, accelerator, state, config_text):
        return {**super().small_files(accelerator, state, config_text), "part-0.json": b"{}"}


def small(store, *, asynchronous):
    run = Small(store, CheckpointConfig(asynchronous=asynchronous), layout=OneFile())
    run.step()
    return run


def test_another_layout_is_saved_and_restored_to_the_bit(store):
    run = small(store, asynchronous=False)
    run.save()
    files = {path.name for path in store.path(1).iterdir()}
    assert "weights.part-0" in files
    assert "model.safetensors" not in files
    again = Small(store, layout=OneFile())
    torch.manual_seed(5)
    again.resume()
    assert again.everything() == run.everything()


@pytest.mark.parametrize("reason", ["every", "final"])
def test_the_writer_commits_what_another_layout_has(store, reason):
    run = small(store, asynchronous=True)
    run.save(reason)
    run.checkpointer.close()
    run.checkpointer.end(wait_for_copies=False)
    assert (store.path(1) / "part-0.json").read_bytes() == b"{}"
