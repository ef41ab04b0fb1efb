"""What one types after a run, and before it: every command on a small run that is finished, and on text of one's own."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import paragraph, trainer
from tests.corpora import train_bpe
from tests.launching import checkpoint, outcome, train, write_cluster, write_recipe
from tests.messages import line_of, says
from tests.small_checkpoints import flip
from trainer import files, launcher, locks, report
from trainer.checkpoint.format.manifest import describe_files, read_manifest, to_json
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.cli import look
from trainer.config.load import flatten, load
from trainer.data.bpe import tiktoken_lines
from trainer.ending.outcome_file import read_outcome
from trainer.journal import read_events
from trainer.locks import lock_run
from trainer.metrics.curves import read_records

PLAY = [
    "If music be the food of love, play on;\n",
    "Give me excess of it, that, surfeiting,\n",
    "The appetite may sicken, and so die.\n",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a project whose one run, `tiny`, is finished."""
    folder = tmp_path_factory.mktemp("project")
    train(write_recipe(folder, evaluation={"sample_tokens": 8}))
    with mock.patch.object(files, "project_folder", lambda: folder):
        yield folder


def said(*words: str | Path, code: int = 0) -> str:
    """What a command prints; its exit code is checked."""
    done = trainer(*map(str, words))
    assert done.code == code, done
    return done.err if code == 2 else done.out


# Checkpoints


def test_ls_shows_every_checkpoint_and_why_it_is_kept(finished):
    lines = said("checkpoints", "ls", "tiny").splitlines()
    assert lines[0].startswith(f"{finished / 'checkpoints' / 'tiny'}  (3, ")
    assert lines[1].split()[:3] == ["step", "age", "kept"]
    assert [line.split()[0] for line in lines[2:]] == ["24", "20", "16"]
    assert all("  whole, " in line for line in lines[2:])
    assert "best" in "".join(lines[2:])


def test_ls_as_json_is_one_object_a_line(finished):
    entries = [json.loads(line) for line in said("checkpoints", "ls", "tiny", "--json").splitlines()]
    assert [entry["step"] for entry in entries] == [24, 20, 16]
    assert all(entry["problem"] is None and entry["bytes"] > 0 and Path(entry["path"]).is_dir() for entry in entries)
    assert entries[0]["reason"] == "final"
    assert entries[0]["val_loss"]
    assert entries[0]["tiers"]
    assert [(entry["val_loss"] is None, entry["last_val_step"]) for entry in entries] == [
        (False, 24),
        (True, 16),
        (False, 16),
    ]
    assert entries[1]["last_val_loss"] == entries[2]["val_loss"], (
        "a checkpoint between two evaluations states the one before it"
    )


def test_verify_reads_every_byte_and_exits_with_1_when_one_is_wrong(finished, tmp_path):
    assert said("checkpoints", "verify", "tiny").count(": sound (") == 3
    copied = tmp_path / "copied"
    shutil.copytree(finished / "checkpoints" / "tiny", copied, symlinks=True)
    assert said("checkpoints", "verify", copied).count(": sound (") == 3
    flip(copied / "step-00000020" / "optimizer.bin", -100, 1)
    text = said("checkpoints", "verify", copied, code=1)
    line_of(text, "step-00000020", "optimizer.bin", "damaged")
    assert text.count(": sound (") == 2
    (copied / "step-00000024" / "model.safetensors").unlink()
    line_of(said("checkpoints", "verify", copied, code=1), "step-00000024", "model.safetensors", "missing")
    listed = said("checkpoints", "ls", copied).splitlines()
    says(listed[2], "model.safetensors", "missing")
    assert "DAMAGED, found " in listed[3]
    assert "whole, verified " in listed[4]


@pytest.fixture
def copied(finished, tmp_path):
    """A folder of the run's three checkpoints that a test may change."""
    shutil.copytree(finished / "checkpoints" / "tiny", tmp_path / "copied", symlinks=True)
    return tmp_path / "copied"


def test_show_says_what_a_checkpoint_is(finished):
    text = said("checkpoints", "show", "tiny")
    assert text.startswith(str(checkpoint(finished / "tiny.yaml", 24)))
    assert "final" in text
    assert "progress.step" in text
    assert said("checkpoints", "show", checkpoint(finished / "tiny.yaml", 16)).split()[0].endswith("step-00000016")
    facts = json.loads(said("checkpoints", "show", "tiny", "--checkpoint", "20", "--json"))
    assert facts["step"] == 20
    assert "model.safetensors" in facts["files"]
    assert facts["identity"]["seed"] == 1337


def test_diff_names_the_tensors_that_differ(finished):
    text = said("checkpoints", "diff", "tiny", "16", "24")
    assert "settings: the same" in text
    assert " tensors differ: " in text
    assert "config.yaml" in text
    found = json.loads(said("checkpoints", "diff", "tiny", "16", "latest", "--json"))
    assert found["manifest"]["step"] == [16, 24]
    assert found["files"]["config.yaml"]["equal"]
    assert "model.embed_tokens.weight" in found["files"]["model.safetensors"]["tensors"]


def test_a_pinned_checkpoint_survives_a_prune_and_without_its_pin_goes(copied):
    recipe = copied / "step-00000024" / "config.yaml"
    without = {
        r"keep_last: \d+": "keep_last: 1",
        r"keep_best: \d+": "keep_best: 0",
        r"rollback:\n    max: \d+": "rollback:\n    max: 0",
    }
    settings = recipe.read_text()
    for setting, value in without.items():
        settings = re.sub(setting, value, settings)
    recipe.write_text(settings)
    manifest = read_manifest(recipe.parent)
    (recipe.parent / "manifest.json").write_text(to_json(replace(manifest, files=describe_files(recipe.parent))))
    assert said("checkpoints", "pin", copied, "16").strip().endswith("is pinned")
    told = said("checkpoints", "prune", copied, "--dry-run")
    assert "1 would go" in told
    assert "step-00000020" in told
    assert (copied / "step-00000020").is_dir()
    assert "1 removed" in said("checkpoints", "prune", copied)
    assert said("checkpoints", "verify", copied).count(": sound (") == 2
    said("checkpoints", "unpin", copied, "16")
    assert "step-00000016" in said("checkpoints", "prune", copied)
    assert [path.name for path in copied.glob("step-*")] == ["step-00000024"]


def test_a_copy_on_another_disk_is_sound_and_equal_to_the_byte(finished, tmp_path):
    said("checkpoints", "copy", "tiny", "best", tmp_path / "disk")
    (copied,) = (tmp_path / "disk").glob("step-*")
    assert said("checkpoints", "verify", tmp_path / "disk").count(": sound (") == 1
    original = finished / "checkpoints" / "tiny" / copied.name
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in original.iterdir()
    }


def test_one_checkpoint_may_be_named_by_its_folder(finished):
    folder = checkpoint(finished / "tiny.yaml", 20)
    assert said("checkpoints", "verify", folder).startswith("step-00000020: sound")
    assert [json.loads(line)["step"] for line in said("checkpoints", "ls", folder, "--json").splitlines()] == [20]
    words = ("--prompt", "Enter", "--max-new-tokens", "8")
    assert said("generate", folder, *words) == said("generate", "tiny", "--checkpoint", "20", *words)


# What becomes of the model


@pytest.fixture(scope="module")
def exported(finished):
    """The folder that `trainer export` makes of the newest checkpoint."""
    out = finished / "exports" / "tiny"
    assert said("export", "tiny", "--out", out).strip() == str(out)
    return out


def test_the_exported_models_logits_are_the_trained_models_to_the_last_bit(finished, exported):
    import torch
    from safetensors.torch import load_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.model.build import build_model
    from trainer.model.resolve import resolve

    config = load(str(finished / "tiny.yaml")).config
    architecture = resolve(
        None, config.model.config, vocab_size=257, sequence_length=config.sequence_length, eot_id=256
    )
    trained = build_model(architecture, vocab_size=257, seed=1, device="cpu")
    load_model(trained, checkpoint(finished / "tiny.yaml", 24) / "model.safetensors")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert model.dtype == torch.float32
    assert type(model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([tokenizer("To be, or not to be: that is the question.")["input_ids"]])
    assert ids.tolist() == [list(b"To be, or not to be: that is the question.")]
    with torch.no_grad():
        theirs, ours = model.eval()(ids).logits, trained.eval()(ids).logits
    assert theirs.shape == (1, ids.shape[1], 257)
    assert torch.equal(theirs, ours[..., :257])


def test_the_exported_model_never_writes_an_id_of_the_padding(exported):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.config.vocab_size == 257
    assert not model.generation_config.suppress_tokens
    torch.manual_seed(0)
    ids = model.generate(
        torch.tensor([[256, 65]]), do_sample=True, temperature=9.0, top_k=0, max_new_tokens=200, eos_token_id=None
    )
    assert ids.shape[1] == 202
    assert ids.max() <= 256


def test_an_export_may_fill_the_folder_one_is_in(finished, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert said("export", "tiny", "--out", ".").strip() == str(tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_every_checkpoint_can_be_exported(finished):
    for wanted in ("best", "16"):
        out = finished / "exports" / wanted
        said("export", "tiny", "--out", out, "--checkpoint", wanted)
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
            p.name for p in out.iterdir()
        }
    assert "16 steps" in (finished / "exports" / "16" / "README.md").read_text()


# The story


def test_report_says_what_came_of_it_and_what_is_next(finished):
    text = said("report", "tiny")
    says(text.strip().splitlines()[0], "tiny", "finished", "step 24", "3.07k tokens")
    for words in (
        "training loss",
        "validation loss",
        report.SAMPLE_TITLE,
        str(finished / "checkpoints/tiny"),
        "exported model",
        "Next:",
    ):
        assert words in text
    assert said("report", finished / "runs" / "tiny") == text


def test_report_is_for_programs_and_a_page_too(finished):
    told = json.loads(said("report", "tiny", "--json", "--html", finished / "page.html"))
    assert (told["name"], told["outcome"], told["step"]) == ("tiny", "finished", 24)
    assert 0 < told["effective_fraction"] < 1
    assert (finished / "page.html").read_text().startswith("<!DOCTYPE html>")
    says(said("report", "tiny"), "effective training time", "stops (1)")


def test_status_says_how_one_run_stands_and_how_all_do(finished):
    (line,) = said("status", "--json").splitlines()
    told = json.loads(line)
    assert (told["name"], told["state"], told["is_alive"], told["step"], told["max_steps"]) == (
        "tiny",
        "finished",
        False,
        24,
        24,
    )
    assert told["saved_step"] == 24
    assert told["worst_lost_work_seconds"] > 0
    screen = said("status", "tiny")
    says(screen, "tiny: finished", "step 24 of 24", "last events")
    assert said("status", finished / "runs" / "tiny").splitlines()[0] == screen.splitlines()[0]
    assert said("status").splitlines()[1].split()[:4] == ["tiny", "finished", "24", "24"]
    says(paragraph(said("status", "tinny", code=2)), "'tinny'", "'tiny'")


def test_a_watched_run_is_shown_again_and_again_until_ctrl_c(finished, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(look.time, "sleep", sleep)
    assert len(said("status", "tiny", "--watch", "--json").splitlines()) == 2


def test_a_start_names_what_goes_on_before_the_first_step_in_its_order(finished):
    (output,) = finished.glob("output-*.log")
    told, place = output.read_text(), 0
    for words in (
        "importing torch",
        "opening the data",
        "building the model",
        "looking for a checkpoint",
        "warming up",
    ):
        place = told.find(words, place)
        assert place >= 0, f"{words} is not told, or not in its place:\n{told}"
    assert place < told.index("step 1/")


def test_show_config_prints_every_setting_and_where_it_came_from(finished):
    text = said("train", finished / "tiny.yaml", "seed=7", "--show-config")
    rows = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert rows.keys() == flatten(load(str(finished / "tiny.yaml")).config).keys()
    assert rows["seed"].split() == ["seed", "7", "override"]
    assert "tiny.yaml:" in rows["max_steps"]
    assert rows["deterministic"].endswith("default")


def test_settings_prints_the_guides_table():
    assert said("settings").startswith("| setting | default | meaning |\n")
    assert "| `optimizer.lr` | `0.0006` |" in said("settings")


@pytest.fixture
def nothing_starts(monkeypatch):
    """The shipped cluster files, no GPU, and nothing is launched."""
    shipped = Path(launcher.__file__).parent.parent / "accelerate_configs"
    monkeypatch.setattr(launcher.clusters, "clusters_folder", lambda: shipped)
    monkeypatch.setattr(launcher.clusters, "count_gpus", lambda: 0)
    monkeypatch.setattr(launcher, "run_launch", lambda *_: pytest.fail("a dry run launches nothing"))


def looked(finished: Path, *words: str, cluster: str = "cpu_2proc", code: int = 0) -> dict[str, str]:
    """What a dry run says: rows by their name (`changed` by what it is since), notes under `note`, a refusal under `error`."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    done = trainer("launch", cluster, str(finished / "tiny.yaml"), *words, "--dry-run")
    assert done.code == code, done
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    if code:
        return {"error": paragraph(done.err)}
    found = {}
    for line in done.out.splitlines()[1:]:
        name, _, text = line.partition(": " if line.startswith("note: ") else " ")
        key = f"changed since {text.split('since ')[1].split(':')[0]}" if name == "changed" else name
        found[key] = text.strip()
    return found


def test_a_dry_run_shows_what_would_run_and_starts_nothing(finished, nothing_starts):
    shown = looked(finished, "max_steps=48", "optimizer.lr=0.002")
    assert shown["cluster"].startswith("cpu_2proc: 2 processes on CPUs, fp32")
    trained = re.search(r"model: (\S+ parameters \(.*?\))", (finished / "runs" / "tiny" / "train.log").read_text())[1]
    assert shown["model"] == f"llama, {trained}"
    says(shown["a"], "8 sequences", "128 tokens", 2)
    assert "48 steps, 6.14k tokens," in shown["the"]
    assert shown["from"].startswith("step 24 (")
    says(shown["from"], "24 steps")
    says(shown["changed since the last launch"], "max_steps 24 -> 48", "optimizer.lr 0.003 -> 0.002")
    says(shown["changed since step 24"], "processes 1 -> 2")
    assert "max_steps" not in shown["changed since step 24"]
    assert "tokens/s" in shown["takes"]
    assert str(finished / "runs" / "tiny") in shown["folders"]
    command = shown["command"].split()
    assert command[-5:] == ["trainer", "train", str(finished / "tiny.yaml"), "max_steps=48", "optimizer.lr=0.002"]
    assert command[command.index("--config_file") + 1].endswith("cpu_2proc.yaml")
    assert "note" not in shown


def test_a_dry_run_of_a_finished_run_and_of_a_new_one_says_so(finished, nothing_starts):
    says(looked(finished)["from"], "tiny", "finished")
    new = looked(finished, "name=new")
    assert new["from"].startswith("the beginning")
    assert not any(key.startswith(("changed", "takes")) for key in new)


def test_a_dry_run_for_another_machine_or_of_a_run_that_is_alive_is_a_note(finished, nothing_starts):
    assert "wants 4 GPUs" in looked(finished, "name=new", "micro_batch=1", cluster="4gpu_bf16")["note"]
    with locks.take(finished / "runs" / "tiny" / ".lock"):
        says(looked(finished, "max_steps=48")["note"], "right now")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["micro_batch=80000000", "global_batch=160000000"], "micro_batch 80000000 sequences of 16 tokens need"),
        (["seed=5", "max_steps=48"], "seed is 5 here and 1337 in the checkpoint"),
        (["max_steps=20"], "max_steps is 20"),
        (["resume_from_checkpoint=7"], "step-00000007"),
        (
            ["name=new", "checkpoint.keep_last=1000000000000", "max_steps=10000000000000"],
            "are free; keep fewer (checkpoint.keep_last)",
        ),
        (["name=new", "model.config={model_type: lama}"], "model_type 'lama' is unknown"),
        (["name=new", "metrics.trackers=[tensorbord]"], "did you mean 'tensorboard'?"),
        (["name=new", "evaluation.sample_tokens=8", f"evaluation.prompt={'x' * 100}"], "evaluation.sample_prompts has"),
        (["name=new", "global_batch=3"], "nearest"),
        (["name=new", "data.train=[none.bin]"], "no shard matches"),
    ],
)
def test_a_dry_run_refuses_what_a_launch_would_refuse(finished, nothing_starts, words, expected):
    assert expected in looked(finished, *words, code=2)["error"]


def test_a_checkpoint_may_be_named_by_the_option_as_everywhere(copied, tmp_path):
    assert said("checkpoints", "pin", copied, "--checkpoint", "16").strip().endswith("is pinned")
    said("checkpoints", "unpin", copied, "--checkpoint", "16")
    said("checkpoints", "copy", copied, tmp_path / "disk", "--checkpoint", "20")
    assert [path.name for path in (tmp_path / "disk").glob("step-*")] == ["step-00000020"]
    text = said("checkpoints", "diff", copied, "--checkpoint", "16", "--checkpoint", "24")
    assert text == said("checkpoints", "diff", copied, "16", "24")
    said("checkpoints", "fetch", tmp_path / "disk", "--checkpoint", "20", "--to", tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").glob("step-*")] == ["step-00000020"]


def test_a_finished_run_is_not_launched_again_and_says_what_to_do(finished, monkeypatch):
    monkeypatch.setattr(
        launcher.clusters, "clusters_folder", lambda: Path(launcher.__file__).parent.parent / "accelerate_configs"
    )
    monkeypatch.setattr(launcher, "run_launch", lambda *_: pytest.fail("a finished run is not launched"))
    text = said("launch", "cpu", finished / "tiny.yaml")
    says(text.splitlines()[0], "tiny", "finished", "max_steps")
    line_of(text, "tiny", "finished", "step 24")


# Text of one's own


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """Documents as text, JSON lines and parquet, and a vocabulary that was trained on them."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("text")
    (folder / "play.txt").write_text("".join(PLAY) * 60)
    (folder / "play.jsonl").write_text("".join(json.dumps({"text": line * 20}) + "\n" for line in PLAY))
    pyarrow.parquet.write_table(pyarrow.table({"text": [line * 20 for line in PLAY]}), folder / "play.parquet")
    (folder / "held_out.txt").write_text("".join(reversed(PLAY)) * 20)
    (folder / "mine.tiktoken").write_bytes(tiktoken_lines(train_bpe(PLAY * 20, 300)))
    return folder


def prepare(text_folder: Path, out: Path, tokenizer: str | Path) -> str:
    sources = [text_folder / f"play.{kind}" for kind in ("txt", "jsonl", "parquet")]
    return said(
        "prepare", *sources, "--out", out, "--tokenizer", tokenizer, "--validation", text_folder / "held_out.txt"
    )


def test_what_prepare_names_at_its_end_is_found_from_the_projects_folder(text_folder, project, monkeypatch):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    said_last = prepare(text_folder, Path("corpus"), "bytes").splitlines()[-1]
    named = re.search(r"data\.corpus=(\S+)", said_last)[1]
    assert files.project_folder() / named == project / "elsewhere" / "corpus"


def train_on(folder: Path, corpus: Path) -> Path:
    recipe = write_recipe(folder, name="mine", max_steps=6, evaluation={"every_steps": 3, "sample_tokens": 8})
    train(recipe, "data.train=[]", "data.validation=[]", "data.tokenizer=", f"data.corpus={corpus}")
    assert outcome(recipe, "mine")["outcome"] == "finished"
    return recipe


@pytest.mark.parametrize("own_vocabulary", [False, True], ids=["bytes", "own-tiktoken-file"])
def test_text_of_ones_own_is_prepared_trained_on_generated_and_exported(text_folder, project, own_vocabulary):
    from transformers import AutoTokenizer

    from trainer.data.tokenizer import load_tokenizer

    vocabulary = text_folder / "mine.tiktoken" if own_vocabulary else "bytes"
    printed = prepare(text_folder, project / "corpus", vocabulary)
    assert "(7 documents)" in printed
    assert f"data.corpus={project / 'corpus'}" in printed
    says(prepare(text_folder, project / "corpus", vocabulary), project / "corpus", "already")

    recipe = train_on(project, project / "corpus")
    assert outcome(recipe, "mine")["sample"] is not None
    text = said("report", "mine")
    assert "bigram model" in text
    assert "exported model" in text
    prompt = "If music be"
    assert said("generate", "mine", "--prompt", prompt, "--max-new-tokens", "8").startswith(prompt)
    out = project / "exported"
    said("export", "mine", "--out", out)
    for folder in (out, project / "runs" / "mine" / "exported"):
        assert AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"] == load_tokenizer(str(vocabulary)).encode(
            prompt
        )
    assert len(load_tokenizer(str(vocabulary)).encode(prompt)) < 12 or not own_vocabulary


def test_a_vocabulary_that_is_gone_or_another_one_by_now_is_told(text_folder, project):
    prepare(text_folder, project / "corpus", text_folder / "mine.tiktoken")
    train_on(project, project / "corpus")
    kept = project / "corpus" / "tokenizer.tiktoken"
    kept.write_bytes(tiktoken_lines(train_bpe(["another text " * 9], 280)))
    says(paragraph(said("generate", "mine", code=2)), kept, "changed")
    kept.unlink()
    says(paragraph(said("export", "mine", "--out", project / "out", code=2)), kept)
    assert not (project / "out").exists()


def test_shards_whose_tokenizer_is_not_at_hand_train_a_model_that_can_be_exported(project):
    from transformers import AutoModelForCausalLM

    recipe = write_recipe(project, max_steps=6)
    train(recipe, "data.tokenizer=", "data.vocab_size=257")
    assert outcome(recipe)["outcome"] == "finished"
    assert outcome(recipe)["sample"] is None
    assert report.SAMPLE_TITLE not in said("report", "tiny")
    told = paragraph(said("generate", "tiny", "--prompt", "To be", code=2))
    says(told, "data.tokenizer")
    told = paragraph(said("eval", "tiny", "--tasks", "shakespeare_lines", code=2))
    says(told, "tokenizer", "task")
    said("export", "tiny", "--out", project / "out")
    model = AutoModelForCausalLM.from_pretrained(project / "out")
    assert model.config.vocab_size == 257
    assert not model.generation_config.suppress_tokens
    assert not (project / "out" / "tokenizer.json").exists()


# Finishing a run before its last step


@pytest.fixture
def stopped(finished, tmp_path, monkeypatch):
    """The folder of a project whose run `tiny` was interrupted at step 24 of 3,000."""
    project = tmp_path / "project"
    shutil.copytree(finished, project, symlinks=True)
    shutil.rmtree(project / "runs/tiny/exported")
    config = project / "runs/tiny/config.yaml"
    config.write_text(
        config.read_text().replace(str(finished), str(project)).replace("max_steps: 24", "max_steps: 3000")
    )
    before = json.loads((project / "runs/tiny/outcome.json").read_text())
    kept = {key: value for key, value in before.items() if key not in ("exported", "exported_step")}
    (project / "runs/tiny/outcome.json").write_text(json.dumps({**kept, "outcome": "interrupted", "exit_code": 75}))
    monkeypatch.setattr(files, "project_folder", lambda: project)
    return project


def test_finish_makes_the_newest_sound_checkpoint_the_final_one_and_exports_it(stopped):
    flip(stopped / "checkpoints/tiny/step-00000024/model.safetensors", 2000)
    words = said("finish", "tiny")
    assert "step-00000024" in words
    assert "step 20 of 3000" in words
    assert str(stopped / "runs/tiny/exported") in words
    ended = read_outcome(stopped / "runs/tiny")
    assert (ended["outcome"], ended["exit_code"], ended["step"], ended["exported_step"], ended["planned_steps"]) == (
        "finished",
        0,
        20,
        20,
        3000,
    )
    assert ended["last_val_step"] == 16
    store = CheckpointStore(stopped / "checkpoints/tiny")
    assert [(manifest.step, manifest.reason) for manifest in store.sound_manifests()] == [(20, "final"), (16, "best")]
    assert not verify(store.path(20))
    assert (store.folder / "latest").resolve() == store.path(20).resolve()
    weights = load_file(stopped / "runs/tiny/exported/model.safetensors")
    assert weights
    assert all(
        torch.equal(value, load_file(store.path(20) / "model.safetensors")[name][: len(value)])
        for name, value in weights.items()
    )
    assert read_records(stopped / "runs/tiny/metrics.jsonl")[-1]["step"] == 20
    assert read_events(stopped / "runs/tiny")[-1]["cause"] == "finished"
    assert said("finish", "tiny").endswith(words.splitlines()[-1] + "\n"), "once more is the same"

    def planned(*overrides):
        return launcher.check_launch(
            [str(write_cluster(stopped, 1)), str(stopped / "runs/tiny/config.yaml"), *overrides]
        )

    assert launcher.is_finished(planned()), "the command that a scheduler repeats has nothing to do"
    assert "resume_from_checkpoint=20" in launcher.finished_words(planned())
    assert not launcher.is_finished(planned("resume_from_checkpoint=20"))
    assert not launcher.is_finished(planned("max_steps=40"))


def test_finish_refuses_a_run_that_is_trained_one_without_checkpoints_and_one_that_is_not_there(stopped):
    before = read_outcome(stopped / "runs/tiny")
    with lock_run(stopped / "runs/tiny"):
        says(paragraph(said("finish", "tiny", code=2)), "another process", "tiny")
    shutil.rmtree(stopped / "checkpoints/tiny")
    says(paragraph(said("finish", "tiny", code=2)), "checkpoints")
    says(paragraph(said("finish", "timy", code=2)), "'timy'", "'tiny'")
    assert read_outcome(stopped / "runs/tiny") == before
    assert not (stopped / "runs/tiny/exported").exists()
