import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.messages import line_of
from tests.small_checkpoints import CONFIG, manifest_of, write_files
from trainer.checkpoint.format.manifest import describe_files
from trainer.checkpoint.inspect.show import diff, pairs, show
from trainer.text import by_dotted_name

FACTS = {
    "identity": {"seed": 1, "training_data": "x" * 99},
    "model": {"hidden_size": 8, "rope": {"theta": 5}, "empty": {}},
    "versions": {"torch": "2.11"},
    "validation": "abc",
    "world_size": 4,
    "precision": "bf16",
    "precision_facts": {
        "asked": "fp8",
        "sentence": f"precision: bf16 instead of fp8, because {'of this ' * 9}",
        "bf16_since_step": None,
    },
}


@pytest.fixture
def two(store):
    """Two checkpoints with a model of two tensors, of which one differs."""
    for step, val_loss in ((5, None), (10, 2.25)):
        staging = store.begin(step)
        write_files(staging, 0)
        (staging / "config.yaml").write_text(CONFIG.replace("max_steps: 100", f"max_steps: {100 + step}"))
        save_file({"a": torch.ones(3), "b": torch.full((2,), float(step))}, staging / "model.safetensors")
        facts = {**FACTS, "val_loss": val_loss, "epoch": 1 if step == 5 else None, "pinned": step == 10}
        store.commit(staging, manifest_of(step, files=describe_files(staging), **facts))
    return store


def test_everything_that_a_manifest_says_is_shown(two):
    text = show(two.folder, "latest")
    for words in (
        str(two.path(10)),
        "latest, rolling, best, pinned",
        "whole, never verified",
        "periodic",
        "step 10, 40 sequences, 320 tokens",
        "2.2500, on validation data abc",
        "world_size 4, precision bf16",
        "seed",
        "x" * 57 + "...",
        "rope.theta",
        "progress.step",
        "2.11",
        "model.safetensors",
        "xxh3-128",
        f"bf16 instead of fp8, because {'of this ' * 9}".strip(),
        "asked",
        "bf16_since_step",
    ):
        assert words in text, words
    older = show(two.folder, "5")
    assert "at the end of epoch 1" in older and "not evaluated" in older


def test_a_manifest_is_shown_to_programs_as_it_is_and_what_is_known_besides(two):
    facts = json.loads(show(two.folder, "best", as_json=True))
    assert facts["step"] == 10 and facts["identity"] == FACTS["identity"] and facts["model"] == FACTS["model"]
    assert facts["files"] == describe_files(two.path(10)) and facts["tiers"] == ["latest", "rolling", "best", "pinned"]
    assert facts["problem"] is None and facts["state"]["progress"] == {"step": 10}


def test_what_a_run_has_of_the_hub_is_shown_with_its_commit(two):
    assert "hf:" not in show(two.folder, "5")
    name = f"hf:someone/small@{'a' * 40}"
    kept = two.path(5) / "config.yaml"
    kept.write_text(kept.read_text().replace("corpus:", f"tokenizer: '{name}', corpus:"))
    assert line_of(show(two.folder, "5"), "data.tokenizer", name)
    kept.write_text("max_steps: [")
    assert "step 5" in show(two.folder, "5"), "the manifest tells what it can"


def test_a_damaged_checkpoint_and_a_copy_of_any_name_are_shown_too(two, tmp_path):
    (two.path(10) / "optimizer.bin").unlink()
    assert "optimizer.bin is missing" in show(two.folder, "10")
    shutil.copytree(two.path(5), tmp_path / "copy")
    assert str(tmp_path / "copy") in show(two.folder, str(tmp_path / "copy"))


def test_what_differs_between_two_checkpoints_is_told_and_nothing_else(two):
    lines = {line.split("  ")[0]: line.split() for line in diff(two.folder, "5", "10").splitlines() if line}
    assert lines["step"] == ["step", "5", "10"] and lines["max_steps"] == ["max_steps", "105", "110"]
    assert lines["epoch"] == ["epoch", "1", "null"] and lines["pinned"] == ["pinned", "false", "true"]
    assert lines["state.progress.step"][1:] == ["5", "10"] and lines["val_loss"][1:] == ["null", "2.25"]
    assert "differs (same size); 1 of 2 tensors differ: b" in " ".join(lines["model.safetensors"])
    assert lines["optimizer.bin"] == ["optimizer.bin", "equal"]
    assert not {"seed", "identity.seed", "world_size", "micro_batch"} & lines.keys()


def test_a_checkpoint_does_not_differ_from_itself(two, tmp_path):
    shutil.copytree(two.path(5), tmp_path / "copy")
    text = diff(two.folder, "5", str(tmp_path / "copy"))
    assert "manifest: the same" in text and "settings: the same" in text and "differ" not in text


def test_a_difference_for_programs_has_both_values_and_all_tensors(two):
    found = json.loads(diff(two.folder, "5", "10", as_json=True))
    assert found["a"] == str(two.path(5)) and found["manifest"]["step"] == [5, 10]
    assert found["settings"] == {"max_steps": [105, 110]}
    assert found["files"]["model.safetensors"]["tensors"] == ["b"] and found["files"]["optimizer.bin"]["equal"] is True


def test_files_and_settings_that_cannot_be_compared_are_told(two):
    staging = two.begin(15)
    write_files(staging, 0)
    (staging / "config.yaml").write_text("max_steps: [")
    (staging / "scaler.pt").write_text("x")
    two.commit(staging, manifest_of(15, files=describe_files(staging)))
    text = diff(two.folder, "10", "15")
    assert "cannot be read: " in text and "its tensors cannot be compared" in text and "only in B" in text
    (two.path(10) / "model.safetensors").unlink()
    assert "No such file" in diff(two.folder, "5", "10")


def test_more_tensors_than_fit_are_counted(store):
    for step in (1, 2):
        staging = store.begin(step)
        write_files(staging, 0)
        save_file({f"t{n:02d}": torch.full((2,), float(step)) for n in range(12)}, staging / "model.safetensors")
        store.commit(staging, manifest_of(step, files=describe_files(staging)))
    assert "12 of 12 tensors differ: t00, t01, t02, t03, t04, t05, t06, t07 and 4 more" in diff(store.folder, "1", "2")


def test_nested_values_have_dotted_names():
    assert by_dotted_name({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}
    assert pairs({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": (1, None), "b": (2, 3), "c": (None, 4)}


def test_of_experts_the_parameters_that_a_token_meets_are_counted(two):
    facts = json.loads(show(two.folder, "latest", as_json=True))
    assert (facts["parameters"], facts["active_parameters"]) == (5, 5)
    staging = two.begin(15)
    write_files(staging, 0)
    tensors = {"layers.0.mlp.experts.down_proj": torch.ones(4, 2, 3), "head.weight": torch.ones(2, 3)}
    save_file(tensors, staging / "model.safetensors")
    model = {"num_experts_per_tok": 1, "num_local_experts": 4}
    two.commit(staging, manifest_of(15, files=describe_files(staging), **{**FACTS, "model": model}))
    facts = json.loads(show(two.folder, "latest", as_json=True))
    assert (facts["parameters"], facts["active_parameters"]) == (30, 12)
    line_of(show(two.folder, "latest"), "model", "30 parameters", "12 active")


def test_a_model_file_that_cannot_be_read_has_no_known_number_of_parameters(two):
    (two.path(10) / "model.safetensors").write_bytes(b"x")
    assert json.loads(show(two.folder, "10", as_json=True))["parameters"] is None
    line_of(show(two.folder, "10"), "model", "not known")
