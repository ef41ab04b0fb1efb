"""What a run carries of the model that it began from stands in each of its checkpoints, under the manifest's digests."""

import pytest

from tests.small_checkpoints import manifest_of, write_files
from trainer.checkpoint.commit import Began, CommitPlan, Committer
from trainer.checkpoint.format.carried import TOKENIZER, carried, replaced, take_along, tokenizer_name
from trainer.checkpoint.format.manifest import describe_files, read_manifest
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.store import CheckpointStore, verify

TEMPLATE = "additional_chat_templates/tool.jinja"


def carry_along(folder, **contents):
    """A run in `folder` that carries files with these contents, those of their names with `/` for `__`."""
    source, run = folder / "model", folder / "runs" / "a"
    run.mkdir(parents=True, exist_ok=True)
    names = [name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja") for name in contents]
    for name, text in zip(names, contents.values(), strict=True):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    take_along(source, names, run)
    return run


def commit_of(run, step, num_bytes=None, **bounds):
    """A checkpoint of the run, committed as its writer does it; returns its folder."""
    store = CheckpointStore(run.parent.parent / "checkpoints" / "a")
    plan = CommitPlan(store.folder, run, run / "metrics.jsonl", run / ".saved", Policy(2, 1, **bounds))
    committer = Committer(store, plan, lambda: None, lambda note: None)
    staging = committer.begin(step, num_bytes)
    write_files(staging, step)
    committer.commit(staging, manifest_of(step, files=describe_files(staging)), Began())
    return store.path(step)


def test_every_checkpoint_has_the_files_and_their_digests(tmp_path):
    run = carry_along(tmp_path, config_json="{}", additional_chat_templates__tool_jinja="{{ x }}")
    final = commit_of(run, 5)
    assert carried(run) == carried(final) == [TEMPLATE, "config.json"]
    assert verify(final) == []
    assert {"source/config.json", f"source/{TEMPLATE}"} < set(read_manifest(final).files)
    (final / "source" / "config.json").write_text("[]")
    assert any("source/config.json" in problem for problem in verify(final))


def test_what_is_taken_along_anew_replaces_all_that_was(tmp_path):
    carry_along(tmp_path, config_json="{}", vocab_json="{}")
    run = carry_along(tmp_path, config_json="[]")
    assert carried(run) == ["config.json"] and (run / "source" / "config.json").read_text() == "[]"
    assert carried(commit_of(carry_along(tmp_path), 5)) == []


def test_the_files_count_where_bytes_are_bounded(tmp_path):
    run = carry_along(tmp_path, config_json="x" * 50_000)
    commit_of(run, 5, 1_000, max_disk_bytes=60_000)
    with pytest.raises(OSError, match="max_disk_bytes"):
        commit_of(run, 10, 1_000, max_disk_bytes=60_000)


def test_a_tokenizer_is_carried_beside_it_and_opened_from_the_checkpoint(tmp_path):
    run = carry_along(tmp_path, config_json="{}")
    with replaced(run, TOKENIZER) as folder:
        (folder / "tokenizer.json").write_text("{}")
    final = commit_of(run, 5)
    assert carried(final, TOKENIZER) == ["tokenizer.json"] and carried(final) == ["config.json"]
    assert verify(final) == [] and "tokenizer/tokenizer.json" in read_manifest(final).files
    assert tokenizer_name(final, manifest_of(5, tokenizer="gpt2")) == str(final / "tokenizer")
    with replaced(run, TOKENIZER):
        pass  # the launch that goes on has one that stands in the package
    final = commit_of(run, 10)
    assert carried(run, TOKENIZER) == carried(final, TOKENIZER) == []
    assert tokenizer_name(final, manifest_of(10, tokenizer="gpt2")) == "gpt2"
    assert tokenizer_name(final, manifest_of(10, tokenizer=None)) is None
