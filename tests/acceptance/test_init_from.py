"""Continued pretraining: a run that begins from another model, is resumed without it, and exports what opens as that one did."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import paragraph, trainer
from tests.launching import checkpoint, final_bytes, steps, train, write_recipe
from tests.messages import line_of, says
from tests.sources import CHAT_TEMPLATE, FAMILIES, FAST, write_source
from trainer.checkpoint.format.manifest import read_manifest
from trainer.journal import read_events
from trainer.model_files import CONFIG
from trainer.pretrained import handed_on

ALL = [pytest.param(family, marks=() if family in FAST else pytest.mark.long) for family in FAMILIES]
SHORT = {"max_steps": 3, "schedule": {"warmup_steps": 1}, "checkpoint": {"every_steps": 1}}


def recipe_of(folder, source, **changes):
    changes = {**SHORT, **changes, "model": {"init_from": str(source), "config": {}, **changes.get("model", {})}}
    return write_recipe(folder, **changes)


@pytest.mark.parametrize("family", ALL)
def test_a_family_is_continued_resumed_without_its_source_and_exported(family, tmp_path):
    source = write_source(tmp_path / "source", family)
    recipe = recipe_of(tmp_path, source)
    train(recipe, "max_steps=1")
    source = source.rename(tmp_path / "moved")
    train(recipe)
    assert [record["step"] for record in steps(recipe)] == [1, 2, 3]
    out = recipe.parent / "runs" / "tiny" / "exported"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    trained = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    trained.load_state_dict(load_file(checkpoint(recipe, 3) / "model.safetensors"), strict=False)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(trained.eval()(tokens).logits, model.eval()(tokens).logits)
    before = load_file(source / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "it was trained"
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in handed_on(source))


def test_two_commands_and_six_lines_continue_a_model_on_a_folder_of_text(tmp_path):
    source, texts = write_source(tmp_path / "model", tie_word_embeddings=True), tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        lines = (f"Chapter {number}, verse {verse}: it was the best of times, it was the worst." for verse in range(20))
        (texts / f"{number}.txt").write_text(" ".join(lines))
    corpus, folders = tmp_path / "corpus", {name: str(tmp_path / name) for name in ("checkpoints", "runs")}
    said = trainer(
        "prepare", str(texts), "--out", str(corpus), "--tokenizer", str(source), "--validation-fraction", "0.05"
    )
    assert said.code == 0, said.err
    lines = (
        f"model: {{init_from: {source}}}",
        f"data: {{corpus: {corpus}}}",
        "max_steps: 50",
        "global_batch: 4",
        "micro_batch: 4",
    )
    (tmp_path / "mine.yaml").write_text("\n".join((*lines, "sequence_length: 64")) + "\n")
    text = train(tmp_path / "mine.yaml", *(f"{name}_folder={folder}" for name, folder in folders.items()))
    losses = [record["loss"] for record in steps(tmp_path / "mine.yaml", "mine")]
    assert len(losses) == 50 and losses[-1] < losses[0] - 0.5, "it has learnt"
    assert "is not the model's own" not in text
    out = tmp_path / "runs" / "mine" / "exported"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert before.chat_template == after.chat_template == CHAT_TEMPLATE
    assert before("It was the best").input_ids == after("It was the best").input_ids


def test_where_a_run_began_is_known_wherever_one_looks(tmp_path):
    source = write_source(tmp_path / "source")
    recipe = recipe_of(tmp_path, source)
    text = train(recipe)
    manifest = read_manifest(checkpoint(recipe, 3))
    digest = manifest.initial["digest"]
    assert len(digest) == 32 and manifest.identity["initial_weights"] == digest
    assert (manifest.initial["source"], manifest.initial["dtype"]) == (str(source), "bfloat16")
    says(text, source, digest)
    (event,) = read_events(recipe.parent / "runs" / "tiny", "initial_weights")
    assert (event["source"], event["digest"], event["tokenizer"]) == (str(source), digest, "own")
    says(trainer("checkpoints", "show", str(tmp_path / "checkpoints" / "tiny")).out, digest, source)
    says((tmp_path / "runs" / "tiny" / "exported" / "README.md").read_text(), digest, source)
    # A run that begins from that one: from its weights, which are other ones by now.
    other = recipe_of(tmp_path, f"run:{tmp_path / 'runs' / 'tiny'}@2", name="other")
    train(other)
    began = read_manifest(checkpoint(other, 3, "other"))
    assert began.initial["source"].endswith("@2") and began.initial["digest"] != digest
    out = tmp_path / "runs" / "other" / "exported"
    assert (out / "chat_template.jinja").read_bytes() == (source / "chat_template.jinja").read_bytes()
    said = trainer("compare", str(tmp_path / "runs" / "tiny"), str(tmp_path / "runs" / "other")).out
    says(line_of(said, "began from"), digest, began.initial["digest"])


def test_two_ranks_begin_with_the_same_weights_as_one(tmp_path):
    recipe = recipe_of(tmp_path, write_source(tmp_path / "source"))
    train(recipe, "max_steps=1")
    train(recipe, "max_steps=1", "name=two", num_processes=2)
    one, two = (read_manifest(checkpoint(recipe, 1, name)) for name in ("tiny", "two"))
    assert one.initial == two.initial and one.identity == two.identity


@pytest.mark.long
def test_a_kill_changes_nothing_of_a_run_that_began_from_another_model(tmp_path):
    recipe = recipe_of(
        tmp_path, write_source(tmp_path / "source"), max_steps=6, schedule={"name": "constant", "warmup_steps": 1}
    )
    train(recipe, "name=whole")
    train(recipe, "max_steps=3")
    train(recipe)
    assert final_bytes(recipe, 6) == final_bytes(recipe, 6, "whole")


def test_weights_of_a_run_that_began_at_random_are_begun_from_with_its_padding_masked(tmp_path):
    recipe = write_recipe(tmp_path, **SHORT)
    train(recipe)
    began = read_manifest(checkpoint(recipe, 3))
    assert (began.vocab_size, began.model["vocab_size"], began.initial) == (257, 320, {})
    other = recipe_of(tmp_path, "run:" + str(tmp_path / "runs" / "tiny"), name="other")
    text = train(other)
    manifest = read_manifest(checkpoint(other, 3, "other"))
    assert (manifest.vocab_size, manifest.model["vocab_size"]) == (257, 320)
    assert manifest.initial["source"].endswith("@3")
    says(text, manifest.initial["digest"])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "other" / "exported")
    assert exported.config.vocab_size == 257 and exported.dtype == torch.float32


def test_a_larger_tokenizer_is_refused_until_rows_may_be_added(tmp_path):
    source = write_source(tmp_path / "source", vocab_size=200, bos_token_id=199, eos_token_id=199)
    recipe = recipe_of(tmp_path, source)
    said = paragraph(train(recipe, exit_code=2))
    says(said, 257, 200, "model.resize_vocabulary=true")
    dry = trainer("launch", str(recipe), "model.resize_vocabulary=true", "--dry-run")
    assert dry.code == 0, dry.err
    says(line_of(dry.out, "weights"), source)
    says(dry.out, "57 rows", 200)
    text = train(recipe, "model.resize_vocabulary=true", "max_steps=1")
    says(text, "57 rows", 200)
    train(recipe, "model.resize_vocabulary=true")
    manifest = read_manifest(checkpoint(recipe, 3))
    assert (manifest.vocab_size, manifest.initial["rows_added"]) == (257, 57)
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "tiny" / "exported")
    assert out.config.vocab_size == 257


def test_rows_without_a_token_stay_and_another_tokenizer_is_a_warning_with_figures(tmp_path):
    source = write_source(tmp_path / "source", vocab_size=300)
    file = source / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    recipe = recipe_of(tmp_path, source)
    text = train(recipe)
    says(line_of(text, "bytes", "257 ids"), "14 texts", source)
    out = tmp_path / "runs" / "tiny" / "exported"
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 300
    assert read_manifest(checkpoint(recipe, 3)).initial["tokenizer"] == "another"
    assert (out / "tokenizer.json").read_bytes() != file.read_bytes()
    assert not (out / "chat_template.jinja").exists()


def test_what_cannot_be_begun_from_ends_with_exit_code_2_and_a_paragraph(tmp_path):
    source = write_source(tmp_path / "source")
    (source / "model.safetensors").unlink()
    recipe = recipe_of(tmp_path, source)
    says(paragraph(train(recipe, exit_code=2)), source, "model.safetensors")
    dry = trainer("launch", str(recipe), "--dry-run")
    assert dry.code == 2
    says(paragraph(dry.err), source, "model.safetensors")


@pytest.mark.long
def test_another_source_at_a_resume_is_not_read_and_that_is_said(tmp_path):
    recipe, other = recipe_of(tmp_path, write_source(tmp_path / "source")), write_source(tmp_path / "other", "qwen2")
    train(recipe, "max_steps=1")
    shutil.rmtree(other)
    train(recipe, f"model.init_from={other}")
    says(
        (tmp_path / "runs" / "tiny" / "train.log").read_text(),
        f"model.init_from is {other}",
        "not read",
        "another name",
    )


@pytest.mark.long
def test_a_run_that_began_at_random_does_not_go_on_from_a_model_and_the_other_way_round(tmp_path):
    source = write_source(tmp_path / "source")
    recipe = write_recipe(tmp_path, **SHORT)
    train(recipe, "max_steps=1")
    says(paragraph(train(recipe_of(tmp_path, source), exit_code=2)), source, "another name")
    train(recipe_of(tmp_path, source, name="other"), "max_steps=1")
    says(paragraph(train(write_recipe(tmp_path, **SHORT, name="other"), exit_code=2)), "another name")


@pytest.mark.long
def test_a_change_of_the_config_at_a_resume_is_told_as_for_any_model(tmp_path):
    recipe = recipe_of(tmp_path, write_source(tmp_path / "source"))
    train(recipe, "max_steps=1")
    said = paragraph(train(recipe, "model.config={attention_dropout: 0.5}", exit_code=2))
    says(said, "model.attention_dropout", "resume.allow_changes")
    train(recipe, "model.config={attention_dropout: 0.5}", "resume.allow_changes=[model.attention_dropout]")
    exported = json.loads((tmp_path / "runs" / "tiny" / "exported" / CONFIG).read_text())
    assert exported["attention_dropout"] == 0.5
