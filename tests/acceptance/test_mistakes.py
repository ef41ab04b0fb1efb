"""What a person gets wrong is answered with one paragraph that says what is wrong, what was expected and what to do.

Every case types a command beside a run that finished well, and compares every file there before and after: a mistake costs nothing.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.commands import paragraph, trainer
from tests.launching import (
    PROJECT,
    TINY_GPT2,
    TINY_LLAMA,
    environment,
    outcome,
    train,
    write_cluster,
    write_recipe,
    write_shards,
)
from tests.messages import says
from tests.small_checkpoints import flip
from trainer import launcher, locks

GPT2_FIELDS = {**TINY_GPT2, "resid_pdrop": 0.0}


@dataclass(frozen=True)
class Mistake:
    """A command line with `{tmp}` and `{recipe}` to fill in, the value and the remedy that its answer must name, and what to lay out before it."""

    name: str
    command: str
    expected: tuple[str, ...]
    lay_out: Callable[[Path], object] = lambda tmp: None

    def words(self, tmp: Path) -> list[str]:
        return [
            word.replace("{tmp}", str(tmp)).replace("{recipe}", str(tmp / "tiny.yaml"))
            for word in shlex.split(self.command)
        ]


# What is laid out


def file(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Writes one file."""

    def write(tmp: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def cluster(num_processes: int = 2, without: str | None = None, **changes) -> Callable[[Path], object]:
    """Writes a cluster file `cluster.yaml` with changes."""

    def write(tmp: Path) -> None:
        path = write_cluster(tmp, num_processes, **changes)
        content = yaml.safe_load(path.read_text())
        content.pop(without, None)
        path.unlink()
        (tmp / "cluster.yaml").write_text(yaml.safe_dump(content))

    return write


def truncated_shard(tmp: Path) -> None:
    shard = tmp / "data" / "tiny_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-100])


def other_data(tmp: Path) -> None:
    shard = tmp / "data" / "tiny_train_000001.bin"
    flip(shard, 1024 + 200, 1)


def large_ids(tmp: Path) -> None:
    write_shards(tmp / "large", vocab_size=4096)


def raw_shard(tmp: Path) -> None:
    (tmp / "raw.bin").write_bytes((np.arange(4000) % 250).astype("<u2").tobytes())


def corpus_folder(tmp: Path) -> None:
    """A folder that was prepared with the byte tokenizer."""
    file("text/one.txt", "All the world's a stage, and all the men and women merely players. " * 40)(tmp)
    done = trainer(
        "prepare",
        str(tmp / "text"),
        "--out",
        str(tmp / "corpus"),
        "--tokenizer",
        "bytes",
        "--validation",
        str(tmp / "text"),
    )
    assert done.code == 0, done.err


def all_damaged(tmp: Path) -> None:
    for folder in (tmp / "checkpoints" / "tiny").glob("step-*"):
        flip(folder / "model.safetensors", -1)


def full_folder(tmp: Path) -> None:
    file("out/precious.txt", "mine")(tmp)


# What is found out before anything is touched

TYPED = [
    # Recipes and settings
    Mistake("unknown recipe", "train shakespear", ("'shakespear'", "'shakespeare'")),
    Mistake(
        "recipe file that is not there",
        "train {tmp}/none.yaml",
        ("{tmp}/none.yaml", "gpt2-124m"),
    ),
    Mistake(
        "unknown key",
        "train {recipe} optimizer.lrr=1",
        ("optimizer.lrr", "optimizer.lr"),
    ),
    Mistake(
        "key in the wrong section",
        "train {recipe} optimizer.warmup_steps=1",
        ("optimizer.warmup_steps", "schedule.warmup_steps"),
    ),
    Mistake(
        "several mistakes at once",
        "train {recipe} seed=x max_stepps=3 optimizer.lr=-1 schedule.name=cosin",
        ("seed", "'x'", "max_steps", "optimizer.lr", "-1", "greater than 0", "'cosine'"),
    ),
    Mistake(
        "wrong type",
        "train {recipe} max_steps=many",
        ("max_steps", "'many'", "integer"),
    ),
    Mistake(
        "missing keys",
        "train {tmp}/bare.yaml",
        ("max_steps", "not set", "max_steps=..."),
        file("bare.yaml", "seed: 1\n"),
    ),
    Mistake(
        "word that is no override",
        "train {recipe} max_steps",
        ("'max_steps'", "key=value", "optimizer.lr=3e-4"),
    ),
    Mistake(
        "a section as a word",
        "train {recipe} precision=fp8",
        ("precision", "'fp8'", "recipe, format", "mixed_precision"),
    ),
    Mistake("setting inside a setting", "train {recipe} seed.x=1", ("seed", "{'x': 1}", "integer")),
    Mistake(
        "recipe that is not YAML",
        "train {tmp}/a.yaml",
        ("{tmp}/a.yaml", "YAML", "line 3"),
        file("a.yaml", "a: 1\nb: [\n"),
    ),
    Mistake(
        "recipe that is binary",
        "train {tmp}/a.yaml",
        ("{tmp}/a.yaml", "YAML"),
        file("a.yaml", b"\xff\xfe\x00"),
    ),
    Mistake(
        "recipe without settings",
        "train {tmp}/a.yaml",
        ("{tmp}/a.yaml", "settings", "mapping"),
        file("a.yaml", "- 1\n"),
    ),
    Mistake(
        "key set twice",
        "train {tmp}/a.yaml",
        ("a.yaml:2", "seed"),
        file("a.yaml", "seed: 1\nseed: 2\n"),
    ),
    Mistake(
        "circular base",
        "train {tmp}/a.yaml",
        ("a.yaml -> a.yaml", "`base:`"),
        file("a.yaml", "base: a.yaml\n"),
    ),
    Mistake(
        "unknown base",
        "train {tmp}/a.yaml",
        ("'gpt2-124'", "'gpt2-124m'"),
        file("a.yaml", "base: gpt2-124\n"),
    ),
    Mistake(
        "batch that is no multiple",
        "train {recipe} global_batch=9",
        ("global_batch 9", "micro_batch 2", "8, 10"),
    ),
    Mistake(
        "warm-up longer than the run",
        "train {recipe} schedule.warmup_steps=25",
        ("schedule.warmup_steps 25", "max_steps 24"),
    ),
    Mistake("no data", "train {recipe} data.train=[]", ("data.corpus", "data.train")),
    Mistake(
        "corpus and shards",
        "train {recipe} data.corpus=shakespeare",
        ("data.corpus", "data.train"),
    ),
    Mistake(
        "shards without a vocabulary",
        "train {recipe} data.tokenizer=",
        ("data.train", "data.tokenizer", "data.vocab_size"),
    ),
    Mistake("no model", "train {recipe} model.config={}", ("model.preset", "llama-124m")),
    Mistake(
        "recipe whose name is no run's",
        "train '{tmp}/my run.yaml'",
        ("name 'my run'", "letters"),
        file("my run.yaml", "base: tiny.yaml\nname: ''\n"),
    ),
    Mistake("name that is too long", f"train {{recipe}} name={'a' * 300}", ("name", "200")),
    Mistake(
        "seed that is too large",
        "train {recipe} seed=99999999999999999999",
        ("seed", "99999999999999999999", "less than 9223372036854775808"),
    ),
    Mistake(
        "empty place to resume from",
        "train {recipe} resume_from_checkpoint=",
        ("resume_from_checkpoint", "empty", "latest", "best", "step"),
    ),
    Mistake(
        "name that is no folder",
        "train {recipe} name=../elsewhere",
        ("name '../elsewhere'", "letters"),
    ),
    # The command line itself
    Mistake("unknown command", "trian shakespeare", ("'trian'", "'train'", "--help")),
    Mistake("command that nobody knows", "xyzzy mine", ("'xyzzy'", "--help")),
    Mistake("unknown option", "train shakespeare --resume", ("--resume", "trainer train --help")),
    Mistake("option left out", "export tiny", ("'--out'", "trainer export --help")),
    Mistake(
        "option out of range",
        "generate tiny --temperature -1",
        ("'--temperature'", "greater than or equal to 0", "--help"),
    ),
    Mistake(
        "seed that is too large to generate with",
        "generate tiny --seed 99999999999999999999",
        ("'--seed'", "less than or equal to 9223372036854775807", "--help"),
    ),
    Mistake(
        "temperature without an end",
        "generate tiny --temperature inf",
        ("'--temperature'", "less than or equal to 1000000", "--help"),
    ),
    # Cluster files
    Mistake(
        "neither cluster nor recipe",
        "launch 4gpu_bf61",
        ("'4gpu_bf61'", "cluster file", "recipe", "'4gpu_bf16'"),
    ),
    Mistake(
        "unknown cluster file",
        "launch cpu_3proc {recipe}",
        ("'cpu_3proc'", "'cpu_2proc'"),
    ),
    Mistake(
        "cluster file that is not there",
        "launch {tmp}/none.yaml {recipe}",
        ("'{tmp}/none.yaml'",),
    ),
    Mistake("swapped names", "launch {recipe} cpu seed=1", ("swap", "cpu {tmp}/tiny.yaml seed=1")),
    Mistake(
        "swapped files",
        "launch {recipe} {tmp}/cluster.yaml",
        ("swap", "{tmp}/cluster.yaml {tmp}/tiny.yaml"),
        cluster(),
    ),
    Mistake(
        "three names",
        "launch cpu {recipe} gpt2-124m",
        ("gpt2-124m", "./launch.sh [CLUSTER] [RECIPE]"),
    ),
    Mistake(
        "cluster file lacking a key",
        "launch {tmp}/cluster.yaml {recipe}",
        ("{tmp}/cluster.yaml", "num_processes", "accelerate_configs"),
        cluster(without="num_processes"),
    ),
    Mistake(
        "cluster file of another kind",
        "launch {tmp}/cluster.yaml {recipe}",
        ("distributed_type", "'DEEPSPEED'", "MULTI_GPU"),
        cluster(distributed_type="DEEPSPEED"),
    ),
    Mistake(
        "unknown precision",
        "launch {tmp}/cluster.yaml {recipe}",
        ("mixed_precision", "'bf61'", "'bf16'"),
        cluster(mixed_precision="bf61"),
    ),
    Mistake(
        "number of processes that is none",
        "launch {tmp}/cluster.yaml {recipe}",
        ("num_processes", "0", "at least 1"),
        cluster(num_processes=0),
    ),
    Mistake(
        "cluster file that is not YAML",
        "launch {tmp}/cluster.yaml {recipe}",
        ("{tmp}/cluster.yaml", "YAML", "`accelerate config`"),
        file("cluster.yaml", "a: ["),
    ),
    Mistake(
        "more GPUs than there are",
        "launch 4gpu_bf16 {recipe}",
        ("4gpu_bf16", "4 GPUs", "0", "cpu"),
    ),
    Mistake(
        "batch that the processes cannot share",
        "launch {tmp}/cluster.yaml {recipe}",
        ("global_batch 8", "micro_batch x processes", "2 x 3 = 6", "12"),
        cluster(3),
    ),
    Mistake(
        "recipe mistake before a launch",
        "launch cpu {recipe} max_steps=0",
        ("max_steps", "0", "greater than 0"),
    ),
    # Data, before a launch
    Mistake(
        "missing shard before a launch",
        "launch cpu {recipe} data.train=[{tmp}/none.bin]",
        ("'{tmp}/none.bin'", "launch.sh prepare"),
    ),
    Mistake(
        "recipe whose data is not prepared",
        "launch cpu gpt2-124m name=nodata data.corpus={tmp}/none",
        (
            "data.corpus",
            "'{tmp}/none'",
            "launch.sh prepare SOURCE... --out {tmp}/none",
            "data.corpus=shakespeare data.tokenizer=gpt2",
        ),
    ),
    Mistake(
        "truncated shard before a launch",
        "launch cpu {recipe}",
        ("tiny_train_000001.bin", "truncated"),
        truncated_shard,
    ),
    # The model, places and where to continue from, before a launch
    Mistake(
        "unknown preset before a launch",
        "launch cpu {recipe} model.preset=llama-124 --dry-run",
        ("model.preset", "'llama-124'", "'llama-124m'"),
    ),
    Mistake(
        "runs folder that is a file",
        "launch cpu {recipe} runs_folder={tmp}/tiny.yaml",
        ("{tmp}/tiny.yaml/tiny", "{tmp}/tiny.yaml", "not a folder", "runs_folder"),
    ),
    Mistake(
        "checkpoints folder that is a file",
        "launch cpu {recipe} checkpoints_folder={tmp}/tiny.yaml/checkpoints",
        ("{tmp}/tiny.yaml", "not a folder", "checkpoints_folder"),
    ),
    Mistake(
        "resume from a step that is not there before a launch",
        "launch cpu {recipe} resume_from_checkpoint=7 --dry-run",
        ("step-00000007", "{tmp}/checkpoints/tiny", "24, 20"),
    ),
    Mistake(
        "resume from a folder that is not there before a launch",
        "launch cpu {recipe} resume_from_checkpoint=none-such",
        ("{tmp}/none-such", "latest", "best", "step"),
    ),
    Mistake(
        "resume from a step that is not whole before a launch",
        "launch cpu {recipe} resume_from_checkpoint=20",
        ("step-00000020", "optimizer.bin", "missing", "24, 20"),
        lambda tmp: (tmp / "checkpoints/tiny/step-00000020/optimizer.bin").unlink(),
    ),
    Mistake(
        "resume from the folder of all checkpoints",
        "launch cpu {recipe} resume_from_checkpoint=checkpoints/tiny",
        ("{tmp}/checkpoints/tiny", "3", "{tmp}/checkpoints/tiny/step-00000024", "latest"),
    ),
    Mistake(
        "starting over where checkpoints are before a launch",
        "launch cpu {recipe} resume_from_checkpoint=none",
        ("3 checkpoints", "name"),
    ),
    # Checkpoints
    Mistake("unknown run", "checkpoints ls tinny", ("'tinny'", "'tiny'")),
    Mistake(
        "unknown run to verify",
        "checkpoints verify tinny",
        ("'tinny'", "'tiny'"),
    ),
    Mistake("unknown run to report", "report tinny", ("'tinny'", "'tiny'")),
    Mistake(
        "unknown run to export",
        "export tinny --out {tmp}/out",
        ("'tinny'", "'tiny'"),
    ),
    Mistake("folder without checkpoints", "checkpoints ls {tmp}/data", ("{tmp}/data", "checkpoints", "step-*")),
    Mistake(
        "show of a step that is not there",
        "checkpoints show tiny --checkpoint 7",
        ("step 7", "24, 20"),
    ),
    Mistake(
        "show of an unknown word",
        "checkpoints show tiny --checkpoint newest",
        ("newest", "latest", "best", "step"),
    ),
    Mistake(
        "diff with a step that is not there",
        "checkpoints diff tiny 24 7",
        ("step 7", "24, 20"),
    ),
    Mistake(
        "diff with one checkpoint",
        "checkpoints diff tiny 24",
        ("2 checkpoints", "24", "--checkpoint STEP --checkpoint STEP"),
    ),
    Mistake("pin of nothing", "checkpoints pin tiny", ("one checkpoint", "--checkpoint STEP")),
    Mistake(
        "pin of two",
        "checkpoints pin tiny 24 --checkpoint 20",
        ("one checkpoint", "20, 24", "--checkpoint STEP"),
    ),
    Mistake(
        "copy of nothing",
        "checkpoints copy tiny {tmp}/copy",
        ("one checkpoint", "--checkpoint STEP"),
    ),
    Mistake("pin of a step that is not there", "checkpoints pin tiny 7", ("step 7", "24, 20")),
    Mistake(
        "unpin in an unknown run",
        "checkpoints unpin tinny 24",
        ("'tinny'", "'tiny'"),
    ),
    Mistake(
        "prune of one checkpoint",
        "checkpoints prune {tmp}/checkpoints/tiny/step-00000024",
        ("{tmp}/checkpoints/tiny/step-00000024", "whole run"),
    ),
    Mistake(
        "copy onto itself",
        "checkpoints copy tiny 24 {tmp}/checkpoints/tiny",
        ("step-00000024", "exists", "folder"),
    ),
    Mistake(
        "copy to where nothing can be",
        "checkpoints copy tiny 24 {tmp}/tiny.yaml/out",
        ("{tmp}/tiny.yaml/out",),
    ),
    Mistake(
        "export onto something",
        "export tiny --out {tmp}/out",
        ("{tmp}/out", "not an empty folder", "folder"),
        full_folder,
    ),
    Mistake(
        "export to where nothing can be",
        "export tiny --out {tmp}/tiny.yaml/out",
        ("{tmp}/tiny.yaml/out", "folder"),
    ),
    Mistake(
        "export to a name that is too long",
        f"export tiny --out {{tmp}}/{'x' * 300}",
        ("{tmp}/", "too long"),
    ),
    Mistake("run with a name that is too long", f"report {'x' * 300}", ("too long",)),
    Mistake(
        "resume from a name that is too long",
        f"launch cpu {{recipe}} resume_from_checkpoint={'x' * 300}",
        ("too long",),
    ),
    Mistake(
        "export of a step that is not there",
        "export tiny --out {tmp}/out --checkpoint 7",
        ("step-00000007", "{tmp}/checkpoints/tiny", "24, 20"),
    ),
    Mistake(
        "export of the damaged",
        "export tiny --out {tmp}/out",
        ("model.safetensors", "damaged", "copy"),
        all_damaged,
    ),
    Mistake(
        "no checkpoint to generate with",
        "generate tiny --checkpoint none",
        ("--checkpoint", "'none'", "latest", "best", "step"),
    ),
    Mistake(
        "no checkpoint to export",
        "export tiny --out {tmp}/out --checkpoint ''",
        ("--checkpoint", "''", "latest", "best", "step"),
    ),
    Mistake(
        "unknown word for a checkpoint",
        "generate tiny --checkpoint newest",
        ("newest", "latest", "best", "step"),
    ),
    Mistake(
        "prompt that is too long",
        "generate tiny --prompt " + "x" * 3000,
        ("prompt", "3001 tokens", "sequences of 16"),
    ),
    Mistake("stop that is empty", "generate tiny --stop ''", ("stop", "empty")),
    Mistake(
        "file of prompts that is not there",
        "generate tiny --prompts-file {tmp}/none.txt",
        ("{tmp}/none.txt", "text file"),
    ),
    # Sources of text
    Mistake(
        "source that is not there",
        "prepare {tmp}/none.txt --out {tmp}/out",
        ("'{tmp}/none.txt'", ".jsonl", ".parquet"),
    ),
    Mistake(
        "folder with a name that is too long",
        f"prepare {{tmp}}/a.txt --out {{tmp}}/{'x' * 300} --tokenizer bytes",
        ("{tmp}/", "manifest.json", "File name too long", "folder"),
        file("a.txt", "text"),
    ),
    Mistake("source of another kind", "prepare {recipe} --out {tmp}/out", (".yaml", ".jsonl", ".parquet")),
    Mistake(
        "unknown tokenizer to prepare with",
        "prepare {recipe} --out {tmp}/out --tokenizer gpt3",
        ("'gpt3'", "'gpt2'"),
    ),
    Mistake(
        "tokenizer file that is not there",
        "prepare {recipe} --out {tmp}/out --tokenizer {tmp}/my.tiktoken",
        ("{tmp}/my.tiktoken", ".tiktoken"),
    ),
    Mistake(
        "share that is none",
        "prepare {recipe} --out {tmp}/out --validation-fraction 2",
        ("validation_fraction", "2.0", "from 0 to below 1"),
    ),
    Mistake(
        "folder of somebody's shards",
        "prepare {tmp}/a.txt --out {tmp}/data --tokenizer bytes",
        ("{tmp}/data", "tiny_train_000001.bin", "--out"),
        file("a.txt", "text"),
    ),
    Mistake(
        "folder of another corpus",
        "prepare {tmp}/text --out {tmp}/corpus --tokenizer bytes",
        ("{tmp}/corpus", "'corpus'", "--out"),
        corpus_folder,
    ),
]


# What the run itself finds out

REFUSED = [
    # Data
    Mistake(
        "missing shard",
        "train {recipe} data.train=[{tmp}/none.bin]",
        ("'{tmp}/none.bin'", "launch.sh prepare"),
    ),
    Mistake(
        "empty folder",
        "train {recipe} data.train=[{tmp}/empty]",
        ("{tmp}/empty", "launch.sh prepare"),
        lambda tmp: (tmp / "empty").mkdir(),
    ),
    Mistake(
        "truncated shard",
        "train {recipe}",
        ("tiny_train_000001.bin", "truncated", "2,324"),
        truncated_shard,
    ),
    Mistake(
        "shard of the wrong vocabulary",
        "train {recipe} data.train=[{tmp}/large/*train*.bin]",
        ("token id", "vocabulary of 257", "tokenizer"),
        large_ids,
    ),
    Mistake(
        "raw shard without its type",
        "train {recipe} data.train=[{tmp}/raw.bin]",
        ("raw.bin", "header", "data.dtype", "uint16"),
        raw_shard,
    ),
    Mistake(
        "sequence longer than the data",
        "train {recipe} sequence_length=2000",
        ("2000", "2,001", "sequence_length"),
    ),
    Mistake(
        "corpus folder without manifest",
        "train {recipe} data.train=[] data.validation=[] data.corpus={tmp}/data",
        ("data.corpus", "'{tmp}/data'", "{tmp}/data", "manifest.json", "launch.sh prepare"),
    ),
    Mistake(
        "corpus prepared with another tokenizer",
        "train {recipe} data.train=[] data.validation=[] data.corpus={tmp}/corpus data.tokenizer=shakespeare",
        ("data.tokenizer", "shakespeare", "bytes"),
        corpus_folder,
    ),
    Mistake("unknown tokenizer", "train {recipe} data.tokenizer=gtp2", ("'gtp2'", "'gpt2'")),
    Mistake(
        "vocabulary smaller than the tokenizer",
        "train {recipe} data.vocab_size=200",
        ("data.vocab_size", "200", "257"),
    ),
    # Model
    Mistake(
        "unknown preset",
        "train {recipe} model.preset=llama-124",
        ("model.preset", "'llama-124'", "'llama-124m'"),
    ),
    Mistake(
        "unknown model type",
        "train {recipe} 'model.config={model_type: lama}'",
        ("'lama'", "'llama'"),
    ),
    Mistake(
        "unknown model field",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_layers': 2} }'",
        ("model.config.num_layers", "num_hidden_layers"),
    ),
    Mistake(
        "heads that do not divide",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_attention_heads': 3} }'",
        ("model.config", "LlamaConfig", "hidden size (32) is not a multiple", "heads (3)"),
    ),
    Mistake(
        "model without the positions",
        f"train {{recipe}} 'model.config={ {**TINY_GPT2, 'n_positions': 8} }'",
        ("n_positions 8", "sequence_length 16"),
    ),
    Mistake(
        "prompt longer than the model",
        f"train {{recipe}} evaluation.sample_tokens=8 evaluation.prompt={'x' * 2047}",
        ("evaluation.sample_prompts", "2048 tokens", "sequence_length", "16"),
    ),
    Mistake(
        "model without a position for a sample",
        f"train {{recipe}} sequence_length=1 evaluation.sample_tokens=8 'model.config={ {**TINY_GPT2, 'n_positions': 1} }'",
        ("evaluation.sample_prompts", "1 tokens", "sequence_length", "1", "evaluation.sample_tokens", "0"),
    ),
    # Places
    Mistake(
        "no space for the checkpoints",
        "train {recipe} checkpoint.keep_last=1000000000000",
        ("free", "checkpoint.keep_last"),
    ),
    Mistake(
        "checkpoints where no folder can be",
        "train {recipe} checkpoints_folder={tmp}/tiny.yaml/checkpoints",
        ("tiny.yaml/checkpoints/tiny",),
    ),
    Mistake(
        "unknown tracker",
        "train {recipe} metrics.trackers=[tensorbord]",
        ("'tensorbord'", "'tensorboard'"),
    ),
    Mistake(
        "tracker that is not installed",
        "train {recipe} metrics.trackers=[aim,tensorboard]",
        ("'aim'", f"{sys.executable} -m pip install aim"),
    ),
    # Where to continue from
    Mistake(
        "resume from a step that is not there",
        "train {recipe} resume_from_checkpoint=7",
        ("step-00000007", "{tmp}/checkpoints/tiny", "24, 20"),
    ),
    Mistake(
        "resume from a folder that is not there",
        "train {recipe} resume_from_checkpoint={tmp}/none",
        ("{tmp}/none", "latest", "best", "step"),
    ),
    Mistake(
        "resume from a folder that is no checkpoint",
        "train {recipe} resume_from_checkpoint={tmp}/data",
        ("{tmp}/data", "manifest.json", "latest", "best", "step"),
    ),
    Mistake(
        "resume from the damaged",
        "train {recipe}",
        ("model.safetensors", "damaged", "copy"),
        all_damaged,
    ),
    Mistake(
        "resume from a damaged step",
        "train {recipe} resume_from_checkpoint=24",
        ("step-00000024", "model.safetensors", "damaged", "{tmp}/checkpoints/tiny", "24, 20"),
        all_damaged,
    ),
    Mistake(
        "resume from the best of a run that has none",
        "train {recipe} name=fresh resume_from_checkpoint=best",
        ("validation loss", "latest"),
    ),
    Mistake(
        "starting over where checkpoints are",
        "train {recipe} resume_from_checkpoint=none",
        ("3 checkpoints", "name"),
    ),
    Mistake(
        "checkpoint of another model",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_hidden_layers': 3} }'",
        ("model.num_hidden_layers", "3", "2", "name"),
    ),
    Mistake(
        "checkpoint of another family",
        f"train {{recipe}} 'model.config={GPT2_FIELDS}'",
        ("model.model_type", "gpt2", "llama", "name"),
    ),
    Mistake(
        "checkpoint of other data",
        "train {recipe}",
        ("data", "*_train_*.bin", "checkpoint", "name", "resume.allow_changes=[data]"),
        other_data,
    ),
    Mistake(
        "checkpoint of another seed",
        "train {recipe} seed=5",
        ("seed", "5", "1337", "name"),
    ),
    Mistake(
        "checkpoint of another sequence length",
        "train {recipe} sequence_length=8",
        ("sequence_length", "8", "16", "resume.allow_changes=[sequence_length]"),
    ),
    Mistake(
        "fewer steps than were taken",
        "train {recipe} max_steps=20",
        ("max_steps", "20", "step 24", "launch.sh finish"),
    ),
    Mistake(
        "checkpoint of another optimizer",
        "train {recipe} optimizer.name=muon",
        ("optimizer", "muon", "adamw", "resume.allow_changes=[optimizer]"),
    ),
]


# The run that must not be harmed


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that finished well."""
    folder = tmp_path_factory.mktemp("finished")
    train(write_recipe(folder))
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A project of its own with a copy of that run, on a machine without a GPU, where nothing is really launched."""
    for part in ("checkpoints", "runs", "data"):
        shutil.copytree(finished / part, tmp_path / part, symlinks=True)
    recipe = write_recipe(tmp_path)
    kept = tmp_path / "runs" / "tiny" / "config.yaml"
    kept.write_text(kept.read_text().replace(str(finished), str(tmp_path)))
    assert recipe.is_file()
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    monkeypatch.setattr(
        launcher.clusters, "clusters_folder", lambda: Path(launcher.__file__).parent.parent / "accelerate_configs"
    )
    monkeypatch.setattr(launcher.clusters, "count_gpus", lambda: 0)
    monkeypatch.setattr(launcher, "run_launch", lambda *_: pytest.fail("a mistake must be told before a launch"))
    return tmp_path


def everything(folder: Path) -> dict[str, object]:
    """Every folder, link and file inside, with what it holds."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.startswith("output-"):
            continue
        found[name] = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


def check_words(mistake: Mistake, said: str, tmp: Path) -> str:
    told = paragraph(said)
    says(told, *(token.replace("{tmp}", str(tmp)) for token in mistake.expected))
    return told.removeprefix("error: ")


def test_there_are_many_cases_and_each_has_a_name_of_its_own():
    names = [mistake.name for mistake in TYPED + REFUSED]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.parametrize("mistake", TYPED, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_that_is_typed_is_told_and_touches_nothing(mistake, place):
    mistake.lay_out(place)
    before = everything(place)
    said = trainer(*mistake.words(place))
    assert said.code == 2, said
    check_words(mistake, said.err, place)
    assert said.out == ""
    assert everything(place) == before


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_that_the_run_finds_is_told_and_harms_nothing(mistake, place):
    mistake.lay_out(place)
    before, finished_outcome = everything(place), outcome(place / "tiny.yaml")
    _, recipe, *overrides = mistake.words(place)
    reason = check_words(mistake, train(Path(recipe), *overrides, exit_code=2), place)

    name = "fresh" if "name=fresh" in overrides else "tiny"
    noted = outcome(place / "tiny.yaml", name)
    if name == "tiny":  # what the earlier launch achieved is still said, as it was
        attempt = noted.pop("last_attempt")
        assert noted == finished_outcome
        assert noted["outcome"] == "finished"
        assert attempt["outcome"] == "refused"
        assert attempt["reason"] == reason
        assert attempt["time"]
    else:
        assert noted["outcome"] == "refused"
        assert noted["reason"] == reason
        assert noted["exit_code"] == 2
    after = everything(place)
    mine = {f"runs/{name}/{file}" for file in ("outcome.json", "train.log", "journal.jsonl", ".lock")} | {
        f"runs/{name}"
    }
    mine |= {
        f"checkpoints/{name}",
        f"checkpoints/{name}/.lock",
        f"runs/{name}/stacks",
        f"runs/{name}/stacks/rank-0.txt",
    }
    assert {path for path in before | after if before.get(path) != after.get(path)} <= mine
    for told in ("runs/tiny/train.log", "runs/tiny/journal.jsonl"):
        assert after[told].startswith(before[told])


@pytest.mark.parametrize("command", ["train", "launch cpu"])
def test_a_run_that_is_trained_right_now_is_left_alone(place, command):
    held = locks.take(place / "runs" / "tiny" / ".lock")
    before = everything(place)
    if command == "train":
        said = train(place / "tiny.yaml", exit_code=2)
    else:
        typed = trainer(*command.split(), str(place / "tiny.yaml"))
        assert typed.code == 2
        said = typed.err
    held.close()
    says(paragraph(said), "tiny", place / "runs/tiny/.lock", "name")
    assert everything(place) == before


def test_a_run_that_was_refused_goes_on_once_the_mistake_is_mended(place):
    train(place / "tiny.yaml", "seed=5", exit_code=2)
    done = train(place / "tiny.yaml", "max_steps=26")
    assert "step 24 of 26" in done
    assert outcome(place / "tiny.yaml")["outcome"] == "finished"


def test_a_launch_of_several_processes_says_a_refusal_once_and_exits_with_2(place, monkeypatch):
    """Through the real `accelerate launch`, which by itself returns 1 for every failure and prints its own traceback."""
    write_cluster(place, 2)
    words = ["launch", str(place / "cluster_2.yaml"), str(place / "tiny.yaml"), "seed=5", "max_steps=48"]
    script = "import sys; from trainer.config import cluster; cluster.count_gpus = lambda: 0; from trainer.cli import main; main()"
    command = [sys.executable, "-c", script, *words]
    ended = subprocess.run(
        command, env=environment(), cwd=place, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2, ended.stderr
    says(paragraph(ended.stderr), "seed", 5)
    noted = outcome(place / "tiny.yaml")
    assert ended.stdout == ""
    assert noted["outcome"] == "finished"
    assert noted["last_attempt"]["outcome"] == "refused"


# The shell's side


@pytest.fixture
def checkout(place) -> Path:
    """launch.sh in a folder whose .venv is this Python, marked as installed, so that nothing is downloaded."""
    folder = place / "checkout"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("launch.sh", "setup.cfg", "pyproject.toml"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "trainer").symlink_to(PROJECT / "trainer")
    python = folder / ".venv" / "bin" / "python"
    executable(python, f'case "$*" in *"-m pip"*) exit 0 ;; esac; exec "{sys.executable}" "$@"')
    assert launch_sh(folder, "--setup").returncode == 0
    executable(python, f'exec "{sys.executable}" "$@"')
    return folder


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def launch_sh(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [shutil.which("bash"), str(checkout / "launch.sh"), *words],
        env={**environment(), **variables},
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cpu", "shakespear"], ["'shakespear'", "'shakespeare'"]),
        (["cpu", "shakespeare", "optimiser.lr=1", "max_steps=x"], ["optimiser", "optimizer"]),
        (["cpu_2proc", "{recipe}", "global_batch=2"], ["global_batch", 2, "2 x 2 = 4"]),
        (["cpu", "{recipe}", "data.train=[{place}/none.bin]"], ["none.bin", "launch.sh prepare"]),
    ],
)
def test_launch_sh_exits_with_2_after_a_mistake(checkout, place, words, expected):
    before = everything(place)
    filled = [word.replace("{recipe}", str(place / "tiny.yaml")).replace("{place}", str(place)) for word in words]
    ended = launch_sh(checkout, *filled)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    says(paragraph(ended.stderr), *expected)
    assert everything(place) == before


@pytest.fixture
def bare_path(place) -> str:
    """A PATH with what launch.sh itself needs, and no Python."""
    folder = place / "bin"
    folder.mkdir()
    for name in ("dirname", "cat", "cksum", "grep", "mkdir", "readlink", "rm", "sed", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.mark.parametrize("named", ["", "/nonexistent/python3"])
def test_without_a_python_the_set_up_says_how_to_get_one(checkout, bare_path, named):
    shutil.rmtree(checkout / ".venv")
    ended = launch_sh(checkout, PATH=bare_path, PYTHON=named)
    assert ended.returncode == 2
    assert ended.stdout == ""
    says(paragraph(ended.stderr), "3.11", named or "python3.12", "PYTHON=/path/to/python3")
    assert not (checkout / ".venv").exists()


def test_a_set_up_that_cannot_make_its_environment_leaves_no_half_of_one(checkout, bare_path):
    shutil.rmtree(checkout / ".venv")
    executable(
        Path(bare_path) / "python3",
        '[ "$2" = -c ] && exit 0; mkdir -p "$4/bin"; echo "No space left on device" >&2; exit 1',
    )
    ended = launch_sh(checkout, PATH=bare_path, PYTHON="")
    assert ended.returncode == 2
    assert "No space left" in ended.stderr
    says(paragraph(ended.stderr), ".venv", "python3", "disk space")
    assert not (checkout / ".venv").exists()


def test_a_set_up_that_cannot_install_says_so_and_tries_again_next_time(checkout, bare_path):
    (checkout / ".venv" / ".installed").unlink()
    pip = 'case "$*" in *"-m pip"*) echo "Could not find a version" >&2; exit 1 ;; esac'
    executable(checkout / ".venv" / "bin" / "python", f'{pip}; exec "{sys.executable}" "$@"')
    for _ in range(2):
        ended = launch_sh(checkout, PATH=bare_path)
        assert ended.returncode == 2
        assert "Could not find a version" in ended.stderr
        says(paragraph(ended.stderr), "packages", "network")
    assert not (checkout / ".venv" / ".installed").exists()


def test_a_set_up_with_an_extra_is_one_without_it_too(checkout, bare_path):
    (checkout / ".venv" / ".installed").unlink()
    pip = 'case "$*" in *"-m pip"*) echo "$*" >> "$0.calls"; exit 0 ;; esac'
    executable(checkout / ".venv" / "bin" / "python", f'{pip}; exec "{sys.executable}" "$@"')
    for words in (["--setup", "test"], ["--setup"], ["--setup", "test"]):
        ended = launch_sh(checkout, *words, PATH=bare_path)
        assert ended.returncode == 0 and str(checkout / ".venv") in ended.stderr.splitlines()[-1], "its end is told"
    assert len((checkout / ".venv" / "bin" / "python.calls").read_text().splitlines()) == 1


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_of_launch_sh_needs_no_environment_and_makes_none(checkout, word):
    shutil.rmtree(checkout / ".venv")
    ended = launch_sh(checkout, word)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert not (checkout / ".venv").exists()
    assert all(words in ended.stdout for words in ("--dry-run", "selftest", "report", "--setup"))
