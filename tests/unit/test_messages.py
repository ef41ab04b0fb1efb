"""Every family of errors in one form: one paragraph that names the value that is wrong, and says what to do, or what was expected.

Other tests ask what a message names; only this one asks how it is said, of real messages, by family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import CLUSTER
from tests.messages import form_faults, missing, names
from tests.small_checkpoints import commit
from trainer import report, runs
from trainer.checkpoint.format.store import CheckpointStore
from trainer.checkpoint.inspect import listing, pin, remove
from trainer.checkpoint.resume import lookup, select
from trainer.config import folders
from trainer.config.batch import accumulation_steps
from trainer.config.cluster import read_cluster
from trainer.config.load import load
from trainer.config.schema import PrecisionConfig
from trainer.data.layouts import open_shard
from trainer.data.prepare import prepare
from trainer.data.shards import ShardWriter, TokenDataset, resolve_shards
from trainer.data.sources import documents, open_source, rows
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import ConfigError, TrainerError
from trainer.evaluation.tasks import open_tasks
from trainer.export import export
from trainer.generation.prompts import read_prompts
from trainer.model.resolve import resolve
from trainer.optim.schedule import build_schedule
from trainer.precision.decide import Facts, check_required, decide


@dataclass(frozen=True)
class Case:
    """A call that is refused, given a folder to work in, and what its message must name."""

    call: Callable[[Path], object]
    named: tuple[object, ...]


def settings(*overrides: str, named: tuple[object, ...]) -> Case:
    return Case(lambda tmp: load("shakespeare", list(overrides)), named)


def recipe(content: str, *named: object) -> Case:
    return Case(lambda tmp: load(str(written(tmp / "mine.yaml", content)), []), named)


def cluster(*named: object, **changes: object) -> Case:
    content = yaml.safe_dump({key: value for key, value in {**CLUSTER, **changes}.items() if value is not None})
    return Case(lambda tmp: read_cluster(str(written(tmp / "mine.yaml", content))), named)


def model(preset: str | None, *named: object, **fields: object) -> Case:
    return Case(lambda tmp: resolve(preset, fields, vocab_size=50257, sequence_length=1024, eot_id=50256), named)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def shard(path: Path, *ids: int) -> Path:
    with ShardWriter(path, 50257) as writer:
        writer.write(np.array(ids))
    return path


def texts(source: Path) -> list[str]:
    return list(documents(open_source(str(source))))


def saved(tmp: Path) -> CheckpointStore:
    """A run of the name `run` with two checkpoints, of which the newest has lost a file."""
    store = CheckpointStore(tmp / "checkpoints" / "run")
    for step in (5, 10):
        commit(store, step)
    (store.path(10) / "optimizer.bin").unlink()
    return store


FAMILIES: dict[str, list[Case]] = {
    "settings": [
        settings("optimizer.lrr=1", named=("optimizer.lrr", "optimizer.lr")),
        settings("max_steps=many", named=("max_steps", "'many'", "integer")),
        settings("optimizer.lr=-1", named=("optimizer.lr", "-1", "greater than 0")),
        settings("schedule.name=cosin", named=("schedule.name", "'cosin'", "'cosine'")),
        settings("global_batch=10", "micro_batch=4", named=("global_batch", 10, "micro_batch", 4, "8, 12")),
        settings("schedule.warmup_steps=31", "max_steps=30", named=("schedule.warmup_steps", 31, "max_steps", 30)),
        settings("profile.steps=[105,100]", named=("profile.steps", "[105, 100]")),
        settings("data.corpus=", "evaluation.tasks=[]", named=("data.corpus", "data.train")),
        settings("data.train=[a.bin]", named=("data.corpus", "data.train")),
        settings("model.preset=", named=("model.preset", "llama-124m")),
        settings("name=a/b", named=("name", "'a/b'")),
        settings("max_steps", named=("'max_steps'", "key=value")),
        settings("precision=fp8", named=("precision", "'fp8'", "mixed_precision")),
        settings("resume_from_checkpoint=", named=("resume_from_checkpoint", "latest", "best")),
        Case(lambda tmp: load("shakespear", []), ("'shakespear'", "'shakespeare'")),
        recipe("seed: 1\n", "max_steps"),
        recipe("a: [\n", "mine.yaml", "YAML", "line 2"),
        recipe("- 1\n", "mine.yaml", "settings"),
        recipe("seed: 1\nseed: 2\n", "mine.yaml:2", "seed"),
        recipe("base: mine.yaml\n", "mine.yaml", "`base:`"),
        Case(lambda tmp: accumulation_steps(480, 16, 7), ("global_batch", 480, "micro_batch", "448, 560")),
        Case(lambda tmp: build_schedule("cosin", max_steps=9), ("cosin", "'cosine'")),
    ],
    "cluster files": [
        cluster("num_processes", "mine.yaml", num_processes=None),
        cluster("num_processes", 0, num_processes=0),
        cluster("mixed_precision", "'bf61'", "'bf16'", mixed_precision="bf61"),
        cluster("distributed_type", "'DEEPSPEED'", "MULTI_GPU", distributed_type="DEEPSPEED"),
        cluster("fsdp_config.fsdp_version", "fsdp_version: 2", distributed_type="FSDP"),
        cluster("main_process_port", "'x'", main_process_port="x"),
        Case(lambda tmp: read_cluster("4gpu_bf61"), ("'4gpu_bf61'", "'4gpu_bf16'")),
    ],
    "data": [
        Case(lambda tmp: open_shard(tmp / "none.bin"), ("none.bin", "launch.sh prepare")),
        Case(lambda tmp: open_shard(written(tmp / "a.bin", bytes(10))), ("a.bin", "data.dtype", "uint16")),
        Case(lambda tmp: TokenDataset([shard(tmp / "a.bin", *[4096] * 99)], 8, 4096), ("a.bin", "4,096", "tokenizer")),
        Case(lambda tmp: TokenDataset([shard(tmp / "a.bin", 1, 2)], 8, 4096), ("sequence_length", 8)),
        Case(lambda tmp: resolve_shards(["none"], tmp), ("none", "launch.sh prepare")),
        Case(lambda tmp: documents(open_source(str(tmp / "none.txt"))), ("none.txt", ".jsonl")),
        Case(lambda tmp: texts(written(tmp / "a.jsonl", '{"b": 1}\n')), ("a.jsonl", "text", "b", "--text-key")),
        Case(lambda tmp: texts(written(tmp / "a.csv", "a,b")), (".csv", ".jsonl")),
        Case(lambda tmp: load_tokenizer("gtp2"), ("'gtp2'", "'gpt2'")),
        Case(lambda tmp: load_tokenizer(str(tmp / "my.tiktoken")), ("my.tiktoken",)),
        Case(lambda tmp: prepare([], tmp / "out", "gpt2"), ("sources",)),
        Case(lambda tmp: prepare(["x"], tmp / "out", "gpt2", validation_fraction=2), ("validation_fraction", 2)),
    ],
    "models": [
        model("gpt2-124", "model.preset", "'gpt2-124'", "'gpt2-124m'"),
        model(None, "model.preset", "llama-124m"),
        model(None, "'lama'", "'llama'", model_type="lama"),
        model("llama-124m", "num_layers", "num_hidden_layers", num_layers=3),
        model("llama-124m", "gpt2", "llama-124m", model_type="gpt2"),
    ],
    "runs and places": [
        Case(lambda tmp: folders.find_run("mine"), ("'mine'",)),
        Case(lambda tmp: folders.find_checkpoints("mine"), ("'mine'",)),
        Case(lambda tmp: folders.check_can_be_made("runs_folder", written(tmp / "f", "") / "x"), ("runs_folder", "f")),
        Case(lambda tmp: report.report("mine", tmp / "mine", tmp / "x", None), ("mine",)),
        Case(lambda tmp: runs.remove("mine", is_sure=False), ("'mine'",)),
    ],
    "checkpoints": [
        Case(lambda tmp: lookup.all_of(tmp), ("checkpoints",)),
        Case(lambda tmp: lookup.one_of(saved(tmp).folder, "7"), ("step 7", 5)),
        Case(lambda tmp: lookup.one_of(saved(tmp).folder, "newest"), ("newest", "latest", "best")),
        Case(lambda tmp: lookup.one_of(saved(tmp).folder, "best"), ("validation loss", 5)),
        Case(lambda tmp: select.resolve(saved(tmp), "best"), ("validation loss", "latest")),
        Case(lambda tmp: select.resolve(saved(tmp), "none"), ("2 checkpoints", "resume_from_checkpoint", "name")),
        Case(lambda tmp: select.resolve(saved(tmp), "7"), ("step-00000007", 5)),
        Case(lambda tmp: select.resolve(saved(tmp), "10"), ("step-00000010", "optimizer.bin", "missing", 5)),
        Case(lambda tmp: select.check_not_beyond(tmp / "run", 24, 20), ("max_steps", 20, 24, "finish")),
        Case(lambda tmp: select.locate(tmp, "latest"), ("checkpoints",)),
        Case(lambda tmp: listing.pruning(saved(tmp).path(5), dry_run=True), ("step-00000005",)),
        Case(lambda tmp: pin.set_pinned(saved(tmp).folder, "10", pinned=True), ("step-00000010", "optimizer.bin")),
        Case(lambda tmp: remove.remove(saved(tmp).folder, "5"), ("step-00000005", "runs rm")),
    ],
    "precision": [
        Case(lambda tmp: decide("fp4", NO_GPU), ("fp4", "TRAINER_ASKED_PRECISION", "bf16")),
        Case(lambda tmp: check_required(decide("fp8", NO_GPU), REQUIRED), ("precision.required", "fp8")),
        Case(
            lambda tmp: decide("fp8", H100, PrecisionConfig(recipe="nvfp4", format="hybrid")),
            ("precision.format", "'hybrid'", "precision.recipe", "'nvfp4'", "e4m3"),
        ),
        Case(
            lambda tmp: decide("fp8", H100, PrecisionConfig(recipe="delayed", options={"amax": 1})),
            ("precision.options.amax", "precision.recipe", "'delayed'"),
        ),
    ],
    "evaluation and export": [
        Case(lambda tmp: tasks(tmp, "shakespear_lines"), ("'shakespear_lines'", "'shakespeare_lines'")),
        Case(lambda tmp: tasks(tmp, "."), ("'.'", "folder")),
        Case(lambda tmp: tasks(tmp, str(written(tmp / "a.jsonl", "{"))), ("a.jsonl", "line 1", "JSON")),
        Case(lambda tmp: tasks(tmp, str(written(tmp / "a.jsonl", ""))), ("a.jsonl", "JSON")),
        Case(lambda tmp: read_prompts(tmp / "none.txt"), ("none.txt", "UTF-8")),
        Case(lambda tmp: read_prompts(written(tmp / "a.jsonl", "[]\n")), ("a.jsonl", "line 1", "prompt")),
        Case(lambda tmp: exported(tmp, tmp), ("not an empty folder",)),
        Case(lambda tmp: exported(tmp / "out", tmp / "none"), ("none", "model.safetensors")),
        Case(lambda tmp: exported(tmp / "out", tmp / "none", dtype="int4"), ("int4", "bfloat16")),
    ],
}
NO_GPU = Facts("cpu", True)
H100 = Facts("cuda", True, gpu="H100", capability=(9, 0), cuda=(13, 0), backend="TransformerEngine 2.20.2")
REQUIRED = PrecisionConfig(required=True)


def tasks(tmp: Path, name: str) -> object:
    return open_tasks([name], None, tmp, rows=rows)


def exported(out: Path, weights: Path, **settings: object) -> object:
    if out == weights:
        written(out / "file", "mine")
    fields = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    return export(out, model_config=fields, weights=weights, tokenizer=None, **settings)


def messages(case: Case, tmp: Path) -> list[str]:
    """What the error of a call says, each mistake by itself."""
    with pytest.raises(TrainerError) as caught:
        case.call(tmp)
    return list(caught.value.problems) if isinstance(caught.value, ConfigError) else [str(caught.value)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_error_is_one_paragraph_that_names_the_value_and_says_what_to_do(family, project):
    faults = []
    for number, case in enumerate(FAMILIES[family]):
        folder = project / f"case-{number}"
        folder.mkdir()
        said = messages(case, folder)
        faults += [f"{fault}: {message}" for message in said for fault in form_faults(message)]
        faults += [f"{token} is not named: {' '.join(said)}" for token in missing(" ".join(said), *case.named)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("seed is 'x'\nbut should be an integer", "one paragraph"),
        ("seed is  'x', but should be an integer", "one paragraph"),
        ("seed is 'x', which is wrong", "what to do"),
        ("set seed to something", "what to do"),
    ],
)
def test_a_message_of_another_form_is_found(message, fault):
    assert [found for found in form_faults(message) if fault in found]


@pytest.mark.parametrize(
    ("said", "token", "is_named"),
    [
        ("micro_batch is 8, and 9 were expected", 8, True),
        ("micro_batch is 18", 8, False),
        ("micro_batch is 8.5", 8, False),
        ("micro_batch is 8,000", 8, False),
        ("micro_batch is 0.8", 8, False),
        ("it ends with 8.", 8, True),
        ("optimizer.lr2 is unknown", "optimizer.lr", False),
        ("the file /tmp/data/a.bin is\ndamaged", "a.bin is damaged", True),
        ("see aa.bin", "a.bin", False),
    ],
)
def test_a_token_is_a_whole_word(said, token, is_named):
    assert names(said, token) is is_named
