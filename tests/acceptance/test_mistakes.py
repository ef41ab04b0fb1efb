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
from tests.small_checkpoints import flip
from trainer import locks, supervise

GPT2_FIELDS = {**TINY_GPT2, "resid_pdrop": 0.0}


@dataclass(frozen=True)
class Mistake:
    """A command line with `{tmp}` and `{recipe}` to fill in, the words its answer must have, and what to lay out before it."""

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
    Mistake("unknown recipe", "train shakespear", ("unknown recipe 'shakespear'", "did you mean 'shakespeare'?")),
    Mistake(
        "recipe file that is not there",
        "train {tmp}/none.yaml",
        ("recipe {tmp}/none.yaml does not exist", "give the path", "gpt2-124m"),
    ),
    Mistake(
        "unknown key",
        "train {recipe} optimizer.lrr=1",
        ("unknown key optimizer.lrr (override)", "did you mean optimizer.lr?"),
    ),
    Mistake(
        "key in the wrong section",
        "train {recipe} optimizer.warmup_steps=1",
        ("optimizer.warmup_steps", "did you mean schedule.warmup_steps?"),
    ),
    Mistake(
        "several mistakes at once",
        "train {recipe} seed=x max_stepps=3 optimizer.lr=-1 schedule.name=cosin",
        (
            "seed (override) is 'x'",
            "did you mean max_steps?",
            "optimizer.lr (override) is -1, but should be greater than 0",
            "'cosine'",
        ),
    ),
    Mistake(
        "wrong type",
        "train {recipe} max_steps=many",
        ("max_steps (override) is 'many', but should be a valid integer",),
    ),
    Mistake(
        "missing keys",
        "train {tmp}/bare.yaml",
        ("max_steps is not set", "a recipe must set it", "max_steps=..."),
        file("bare.yaml", "seed: 1\n"),
    ),
    Mistake(
        "word that is no override",
        "train {recipe} max_steps",
        ("'max_steps' is not of the form key=value", "e.g. optimizer.lr=3e-4"),
    ),
    Mistake(
        "a section as a word",
        "train {recipe} precision=fp8",
        (
            "precision (override) is 'fp8', but should be a section with settings: recipe, format",
            "is the cluster file's mixed_precision",
        ),
    ),
    Mistake(
        "setting inside a setting", "train {recipe} seed.x=1", ("seed is {'x': 1}, but should be a valid integer",)
    ),
    Mistake(
        "recipe that is not YAML",
        "train {tmp}/a.yaml",
        ("{tmp}/a.yaml is not readable YAML at line 3", "mend the file"),
        file("a.yaml", "a: 1\nb: [\n"),
    ),
    Mistake(
        "recipe that is binary",
        "train {tmp}/a.yaml",
        ("{tmp}/a.yaml is not readable YAML", "mend the file"),
        file("a.yaml", b"\xff\xfe\x00"),
    ),
    Mistake(
        "recipe without settings",
        "train {tmp}/a.yaml",
        ("holds no settings", "should be a mapping of keys to values"),
        file("a.yaml", "- 1\n"),
    ),
    Mistake(
        "key set twice",
        "train {tmp}/a.yaml",
        ("a.yaml:2: seed is set a second time", "keep one of the two"),
        file("a.yaml", "seed: 1\nseed: 2\n"),
    ),
    Mistake(
        "circular base",
        "train {tmp}/a.yaml",
        ("a.yaml is its own base (a.yaml -> a.yaml)", "remove one `base:`"),
        file("a.yaml", "base: a.yaml\n"),
    ),
    Mistake(
        "unknown base",
        "train {tmp}/a.yaml",
        ("unknown recipe 'gpt2-124'", "did you mean 'gpt2-124m'?"),
        file("a.yaml", "base: gpt2-124\n"),
    ),
    Mistake(
        "batch that is no multiple",
        "train {recipe} global_batch=9",
        ("global_batch 9 is not a multiple of micro_batch 2", "nearest: 8, 10"),
    ),
    Mistake(
        "warm-up longer than the run",
        "train {recipe} schedule.warmup_steps=25",
        ("25 is more than max_steps 24", "shorten the warm-up"),
    ),
    Mistake("no data", "train {recipe} data.train=[]", ("no data", "set data.corpus", "or data.train")),
    Mistake(
        "corpus and shards",
        "train {recipe} data.corpus=shakespeare",
        ("data.corpus already names", "set either data.corpus or data.train"),
    ),
    Mistake(
        "shards without a vocabulary",
        "train {recipe} data.tokenizer=",
        ("data.train needs data.tokenizer", "data.vocab_size"),
    ),
    Mistake("no model", "train {recipe} model.config={}", ("no model", "set model.preset (e.g. llama-124m)")),
    Mistake(
        "recipe whose name is no run's",
        "train '{tmp}/my run.yaml'",
        ("name 'my run' cannot name a folder", "use letters"),
        file("my run.yaml", "base: tiny.yaml\nname: ''\n"),
    ),
    Mistake(
        "name that is too long", f"train {{recipe}} name={'a' * 300}", ("aaa' cannot name a folder", "at most 200")
    ),
    Mistake(
        "seed that is too large",
        "train {recipe} seed=99999999999999999999",
        ("seed (override) is 99999999999999999999, but should be less than 9223372036854775808",),
    ),
    Mistake(
        "empty place to resume from",
        "train {recipe} resume_from_checkpoint=",
        ("resume_from_checkpoint is empty", "give latest, best, a step"),
    ),
    Mistake(
        "name that is no folder",
        "train {recipe} name=../elsewhere",
        ("name '../elsewhere' cannot name a folder", "use letters"),
    ),
    # The command line itself
    Mistake("unknown command", "trian shakespeare", ("No such command 'trian'", "did you mean 'train'?", "--help")),
    Mistake("command that nobody knows", "xyzzy mine", ("No such command 'xyzzy'", "--help")),
    Mistake("unknown option", "train shakespeare --resume", ("No such option: --resume", "trainer train --help")),
    Mistake("option left out", "export tiny", ("Missing option '--out'", "trainer export --help")),
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
        ("'--temperature'", "less than or equal to 1000000. The form", "--help"),
    ),
    # Cluster files
    Mistake(
        "neither cluster nor recipe",
        "launch 4gpu_bf61",
        ("'4gpu_bf61' is neither a cluster file nor a recipe", "did you mean '4gpu_bf16'?"),
    ),
    Mistake(
        "unknown cluster file",
        "launch cpu_3proc {recipe}",
        ("unknown cluster file 'cpu_3proc'", "did you mean 'cpu_2proc'?"),
    ),
    Mistake(
        "cluster file that is not there",
        "launch {tmp}/none.yaml {recipe}",
        ("unknown cluster file '{tmp}/none.yaml'", "give the path"),
    ),
    Mistake("swapped names", "launch {recipe} cpu seed=1", ("did you swap them?", "cpu {tmp}/tiny.yaml seed=1")),
    Mistake(
        "swapped files",
        "launch {recipe} {tmp}/cluster.yaml",
        ("did you swap them?", "{tmp}/cluster.yaml {tmp}/tiny.yaml"),
        cluster(),
    ),
    Mistake(
        "three names",
        "launch cpu {recipe} gpt2-124m",
        ("too many names", "the form is: ./launch.sh [CLUSTER] [RECIPE]"),
    ),
    Mistake(
        "cluster file lacking a key",
        "launch {tmp}/cluster.yaml {recipe}",
        ("{tmp}/cluster.yaml lacks num_processes", "accelerate_configs for complete ones"),
        cluster(without="num_processes"),
    ),
    Mistake(
        "cluster file of another kind",
        "launch {tmp}/cluster.yaml {recipe}",
        ("distributed_type is 'FSDP'", "use MULTI_GPU"),
        cluster(distributed_type="FSDP"),
    ),
    Mistake(
        "unknown precision",
        "launch {tmp}/cluster.yaml {recipe}",
        ("mixed_precision is 'bf61'", "did you mean 'bf16'?"),
        cluster(mixed_precision="bf61"),
    ),
    Mistake(
        "number of processes that is none",
        "launch {tmp}/cluster.yaml {recipe}",
        ("num_processes is 0, but should be a whole number of at least 1",),
        cluster(num_processes=0),
    ),
    Mistake(
        "cluster file that is not YAML",
        "launch {tmp}/cluster.yaml {recipe}",
        ("{tmp}/cluster.yaml is not readable YAML", "mend it or write one with `accelerate config`"),
        file("cluster.yaml", "a: ["),
    ),
    Mistake(
        "more GPUs than there are",
        "launch 4gpu_bf16 {recipe}",
        ("4gpu_bf16 wants 4 GPUs and this machine has 0", "take cpu"),
    ),
    Mistake(
        "batch that the processes cannot share",
        "launch {tmp}/cluster.yaml {recipe}",
        ("global_batch 8 is not a multiple of micro_batch x processes = 2 x 3 = 6", "nearest:", "12"),
        cluster(3),
    ),
    Mistake(
        "recipe mistake before a launch",
        "launch cpu {recipe} max_steps=0",
        ("max_steps (override) is 0, but should be greater than 0",),
    ),
    # Data, before a launch
    Mistake(
        "missing shard before a launch",
        "launch cpu {recipe} data.train=[{tmp}/none.bin]",
        ("no shard matches '{tmp}/none.bin'", "launch.sh prepare"),
    ),
    Mistake(
        "recipe whose data is not prepared",
        "launch cpu gpt2-124m name=nodata data.corpus={tmp}/none",
        (
            "data.corpus '{tmp}/none' is neither",
            "launch.sh prepare SOURCE... --out {tmp}/none",
            "data.corpus=shakespeare data.tokenizer=gpt2",
        ),
    ),
    Mistake(
        "truncated shard before a launch",
        "launch cpu {recipe}",
        ("tiny_train_000001.bin is truncated", "Copy or prepare it again"),
        truncated_shard,
    ),
    # The model, places and where to continue from, before a launch
    Mistake(
        "unknown preset before a launch",
        "launch cpu {recipe} model.preset=llama-124 --dry-run",
        ("model.preset 'llama-124' is not a preset", "did you mean 'llama-124m'?"),
    ),
    Mistake(
        "runs folder that is a file",
        "launch cpu {recipe} runs_folder={tmp}/tiny.yaml",
        ("{tmp}/tiny.yaml/tiny cannot be made: {tmp}/tiny.yaml is not a folder", "set runs_folder to another place"),
    ),
    Mistake(
        "checkpoints folder that is a file",
        "launch cpu {recipe} checkpoints_folder={tmp}/tiny.yaml/checkpoints",
        ("{tmp}/tiny.yaml is not a folder", "set checkpoints_folder to another place"),
    ),
    Mistake(
        "resume from a step that is not there before a launch",
        "launch cpu {recipe} resume_from_checkpoint=7 --dry-run",
        ("there is no checkpoint", "step-00000007", "take one of the steps in {tmp}/checkpoints/tiny: 24, 20"),
    ),
    Mistake(
        "resume from a folder that is not there before a launch",
        "launch cpu {recipe} resume_from_checkpoint=none-such",
        ("there is no checkpoint {tmp}/none-such", "give latest, best, a step"),
    ),
    Mistake(
        "resume from a step that is not whole before a launch",
        "launch cpu {recipe} resume_from_checkpoint=20",
        ("step-00000020 is not sound (optimizer.bin is missing)", "24, 20"),
        lambda tmp: (tmp / "checkpoints/tiny/step-00000020/optimizer.bin").unlink(),
    ),
    Mistake(
        "resume from the folder of all checkpoints",
        "launch cpu {recipe} resume_from_checkpoint=checkpoints/tiny",
        (
            "{tmp}/checkpoints/tiny is no checkpoint: it holds 3 of them",
            "{tmp}/checkpoints/tiny/step-00000024",
            "or give latest",
        ),
    ),
    Mistake(
        "starting over where checkpoints are before a launch",
        "launch cpu {recipe} resume_from_checkpoint=none",
        ("already holds 3 checkpoints", "another name"),
    ),
    # Checkpoints
    Mistake("unknown run", "checkpoints ls tinny", ("there are no checkpoints of 'tinny'", "did you mean 'tiny'?")),
    Mistake(
        "unknown run to verify",
        "checkpoints verify tinny",
        ("there are no checkpoints of 'tinny'", "did you mean 'tiny'?"),
    ),
    Mistake("unknown run to report", "report tinny", ("there is no run 'tinny'", "did you mean 'tiny'?")),
    Mistake(
        "unknown run to export",
        "export tinny --out {tmp}/out",
        ("there are no checkpoints of 'tinny'", "did you mean 'tiny'?"),
    ),
    Mistake("folder without checkpoints", "checkpoints ls {tmp}/data", ("{tmp}/data holds no checkpoints", "step-*")),
    Mistake(
        "show of a step that is not there",
        "checkpoints show tiny --checkpoint 7",
        ("there is no checkpoint of step 7", "24, 20"),
    ),
    Mistake(
        "show of an unknown word",
        "checkpoints show tiny --checkpoint newest",
        ("there is no checkpoint newest", "give latest, best, a step"),
    ),
    Mistake(
        "diff with a step that is not there",
        "checkpoints diff tiny 24 7",
        ("there is no checkpoint of step 7", "24, 20"),
    ),
    Mistake(
        "diff with one checkpoint",
        "checkpoints diff tiny 24",
        ("2 checkpoints are wanted, and 1 is named (24)", "--checkpoint STEP --checkpoint STEP"),
    ),
    Mistake(
        "pin of nothing", "checkpoints pin tiny", ("one checkpoint is wanted, and none is named", "--checkpoint STEP")
    ),
    Mistake(
        "pin of two",
        "checkpoints pin tiny 24 --checkpoint 20",
        ("one checkpoint is wanted, and 2 are named (20, 24)", "--checkpoint STEP"),
    ),
    Mistake(
        "copy of nothing",
        "checkpoints copy tiny {tmp}/copy",
        ("one checkpoint is wanted, and none is named", "--checkpoint STEP"),
    ),
    Mistake(
        "pin of a step that is not there", "checkpoints pin tiny 7", ("there is no checkpoint of step 7", "24, 20")
    ),
    Mistake(
        "unpin in an unknown run",
        "checkpoints unpin tinny 24",
        ("there are no checkpoints of 'tinny'", "did you mean 'tiny'?"),
    ),
    Mistake(
        "prune of one checkpoint",
        "checkpoints prune {tmp}/checkpoints/tiny/step-00000024",
        ("is one checkpoint, and pruning is of a whole run", "name the run"),
    ),
    Mistake(
        "copy onto itself",
        "checkpoints copy tiny 24 {tmp}/checkpoints/tiny",
        ("step-00000024 exists already, and nothing is overwritten", "copy to another folder"),
    ),
    Mistake(
        "copy to where nothing can be",
        "checkpoints copy tiny 24 {tmp}/tiny.yaml/out",
        ("could not be copied to {tmp}/tiny.yaml/out", "mend that"),
    ),
    Mistake(
        "export onto something",
        "export tiny --out {tmp}/out",
        ("{tmp}/out exists and is not an empty folder", "name another folder"),
        full_folder,
    ),
    Mistake(
        "export to where nothing can be",
        "export tiny --out {tmp}/tiny.yaml/out",
        ("{tmp}/tiny.yaml/out cannot be written", "name another folder"),
    ),
    Mistake(
        "export to a name that is too long",
        f"export tiny --out {{tmp}}/{'x' * 300}",
        ("the path {tmp}/xxx", "is too long for this disk", "give a shorter one"),
    ),
    Mistake(
        "run with a name that is too long", f"report {'x' * 300}", ("is too long for this disk", "give a shorter one")
    ),
    Mistake(
        "resume from a name that is too long",
        f"launch cpu {{recipe}} resume_from_checkpoint={'x' * 300}",
        ("is too long for this disk", "give a shorter one"),
    ),
    Mistake(
        "export of a step that is not there",
        "export tiny --out {tmp}/out --checkpoint 7",
        ("there is no checkpoint", "step-00000007", "take one of the steps in {tmp}/checkpoints/tiny: 24, 20"),
    ),
    Mistake(
        "export of the damaged",
        "export tiny --out {tmp}/out",
        ("none is sound", "model.safetensors is damaged", "restore one from a copy"),
        all_damaged,
    ),
    Mistake(
        "no checkpoint to generate with",
        "generate tiny --checkpoint none",
        ("--checkpoint is 'none', which names no checkpoint to read", "give latest, best or a step"),
    ),
    Mistake(
        "no checkpoint to export",
        "export tiny --out {tmp}/out --checkpoint ''",
        ("--checkpoint is ''", "give latest, best or a step"),
    ),
    Mistake(
        "unknown word for a checkpoint",
        "generate tiny --checkpoint newest",
        ("there is no checkpoint newest", "give latest, best, a step"),
    ),
    Mistake(
        "prompt that is too long",
        "generate tiny --prompt " + "x" * 3000,
        (
            "the prompt has 3001 tokens with the end of text before it",
            "the model was trained on sequences of 16",
            "shorten it",
        ),
    ),
    Mistake("stop that is empty", "generate tiny --stop ''", ("a text to stop at is empty", "leave it out")),
    Mistake(
        "file of prompts that is not there",
        "generate tiny --prompts-file {tmp}/none.txt",
        ("{tmp}/none.txt cannot be read", "name a text file"),
    ),
    # Sources of text
    Mistake(
        "source that is not there",
        "prepare {tmp}/none.txt --out {tmp}/out",
        ("source '{tmp}/none.txt' is not there", "Known are"),
    ),
    Mistake(
        "folder with a name that is too long",
        f"prepare {{tmp}}/a.txt --out {{tmp}}/{'x' * 300} --tokenizer bytes",
        ("{tmp}/xxx", "manifest.json cannot be read: File name too long", "name another folder"),
        file("a.txt", "text"),
    ),
    Mistake("source of another kind", "prepare {recipe} --out {tmp}/out", ("is a .yaml file", "Known are")),
    Mistake(
        "unknown tokenizer to prepare with",
        "prepare {recipe} --out {tmp}/out --tokenizer gpt3",
        ("unknown tokenizer 'gpt3'", "did you mean 'gpt2'?"),
    ),
    Mistake(
        "tokenizer file that is not there",
        "prepare {recipe} --out {tmp}/out --tokenizer {tmp}/my.tiktoken",
        ("there is no file {tmp}/my.tiktoken", "Name an existing"),
    ),
    Mistake(
        "share that is none",
        "prepare {recipe} --out {tmp}/out --validation-fraction 2",
        ("validation_fraction is 2.0", "from 0 to below 1"),
    ),
    Mistake(
        "folder of somebody's shards",
        "prepare {tmp}/a.txt --out {tmp}/data --tokenizer bytes",
        ("{tmp}/data holds tiny_train_000001.bin", "Choose another --out"),
        file("a.txt", "text"),
    ),
    Mistake(
        "folder of another corpus",
        "prepare {tmp}/text --out {tmp}/corpus --tokenizer bytes",
        ("{tmp}/corpus already holds the corpus", "Choose another --out, or remove the folder"),
        corpus_folder,
    ),
]


# What the run itself finds out

REFUSED = [
    # Data
    Mistake(
        "missing shard",
        "train {recipe} data.train=[{tmp}/none.bin]",
        ("no shard matches '{tmp}/none.bin'", "launch.sh prepare"),
    ),
    Mistake(
        "empty folder",
        "train {recipe} data.train=[{tmp}/empty]",
        ("folder {tmp}/empty holds no shards", "launch.sh prepare"),
        lambda tmp: (tmp / "empty").mkdir(),
    ),
    Mistake(
        "truncated shard",
        "train {recipe}",
        ("tiny_train_000001.bin is truncated", "but the file has 2,324", "Copy or prepare it again"),
        truncated_shard,
    ),
    Mistake(
        "shard of the wrong vocabulary",
        "train {recipe} data.train=[{tmp}/large/*train*.bin]",
        ("holds the token id", "outside the vocabulary of 257 ids", "name its tokenizer"),
        large_ids,
    ),
    Mistake(
        "raw shard without its type",
        "train {recipe} data.train=[{tmp}/raw.bin]",
        ("raw.bin has no header", "Set data.dtype to uint16"),
        raw_shard,
    ),
    Mistake(
        "sequence longer than the data",
        "train {recipe} sequence_length=2000",
        ("one sequence of length 2000 needs 2,001", "Lower sequence_length"),
    ),
    Mistake(
        "corpus folder without manifest",
        "train {recipe} data.train=[] data.validation=[] data.corpus={tmp}/data",
        ("data.corpus '{tmp}/data' is neither", "{tmp}/data has no manifest.json", "launch.sh prepare"),
    ),
    Mistake(
        "corpus prepared with another tokenizer",
        "train {recipe} data.train=[] data.validation=[] data.corpus={tmp}/corpus data.tokenizer=shakespeare",
        ("data.tokenizer is shakespeare", "was prepared with bytes", "leave data.tokenizer out"),
        corpus_folder,
    ),
    Mistake(
        "unknown tokenizer", "train {recipe} data.tokenizer=gtp2", ("unknown tokenizer 'gtp2'", "did you mean 'gpt2'?")
    ),
    Mistake(
        "vocabulary smaller than the tokenizer",
        "train {recipe} data.vocab_size=200",
        ("data.vocab_size 200 is smaller than the 257", "leave it out"),
    ),
    # Model
    Mistake(
        "unknown preset",
        "train {recipe} model.preset=llama-124",
        ("model.preset 'llama-124' is not a preset", "did you mean 'llama-124m'?"),
    ),
    Mistake(
        "unknown model type",
        "train {recipe} 'model.config={model_type: lama}'",
        ("model_type 'lama' is unknown", "did you mean 'llama'?"),
    ),
    Mistake(
        "unknown model field",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_layers': 2} }'",
        ("model.config.num_layers is not a field", "did you mean"),
    ),
    Mistake(
        "heads that do not divide",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_attention_heads': 3} }'",
        (
            "model.config is refused by LlamaConfig",
            "hidden size (32) is not a multiple",
            "heads (3)",
            "Mend these fields",
        ),
    ),
    Mistake(
        "model without the positions",
        f"train {{recipe}} 'model.config={ {**TINY_GPT2, 'n_positions': 8} }'",
        ("n_positions 8 is less than sequence_length 16", "raise the one"),
    ),
    Mistake(
        "prompt longer than the model",
        f"train {{recipe}} evaluation.sample_tokens=8 evaluation.prompt={'x' * 2047}",
        (
            "evaluation.sample_prompts has 2048 tokens with the end of text before it, and sequence_length is 16",
            "shorten it",
        ),
    ),
    Mistake(
        "model without a position for a sample",
        f"train {{recipe}} sequence_length=1 evaluation.sample_tokens=8 'model.config={ {**TINY_GPT2, 'n_positions': 1} }'",
        ("evaluation.sample_prompts has 1 tokens", "sequence_length is 1,", "set evaluation.sample_tokens to 0"),
    ),
    # Places
    Mistake(
        "no space for the checkpoints",
        "train {recipe} checkpoint.keep_last=1000000000000",
        ("need", "are free", "keep fewer (checkpoint.keep_last)"),
    ),
    Mistake(
        "checkpoints where no folder can be",
        "train {recipe} checkpoints_folder={tmp}/tiny.yaml/checkpoints",
        ("tiny.yaml/checkpoints/tiny cannot be", "mend that"),
    ),
    Mistake(
        "unknown tracker",
        "train {recipe} metrics.trackers=[tensorbord]",
        ("unknown tracker 'tensorbord'", "did you mean 'tensorboard'?"),
    ),
    Mistake(
        "tracker that is not installed",
        "train {recipe} metrics.trackers=[aim,tensorboard]",
        ("'aim' needs its package, which is not installed", f"{sys.executable} -m pip install aim"),
    ),
    # Where to continue from
    Mistake(
        "resume from a step that is not there",
        "train {recipe} resume_from_checkpoint=7",
        ("there is no checkpoint", "step-00000007", "take one of the steps in {tmp}/checkpoints/tiny: 24, 20"),
    ),
    Mistake(
        "resume from a folder that is not there",
        "train {recipe} resume_from_checkpoint={tmp}/none",
        ("there is no checkpoint {tmp}/none", "give latest, best, a step"),
    ),
    Mistake(
        "resume from a folder that is no checkpoint",
        "train {recipe} resume_from_checkpoint={tmp}/data",
        ("{tmp}/data has no manifest.json", "give latest, best, a step"),
    ),
    Mistake(
        "resume from the damaged",
        "train {recipe}",
        ("none is sound", "model.safetensors is damaged", "restore one from a copy"),
        all_damaged,
    ),
    Mistake(
        "resume from a damaged step",
        "train {recipe} resume_from_checkpoint=24",
        ("is not sound", "model.safetensors is damaged", "take one of the steps in {tmp}/checkpoints/tiny: 24, 20"),
        all_damaged,
    ),
    Mistake(
        "resume from the best of a run that has none",
        "train {recipe} name=fresh resume_from_checkpoint=best",
        ("no checkpoint with a validation loss", "latest instead"),
    ),
    Mistake(
        "starting over where checkpoints are",
        "train {recipe} resume_from_checkpoint=none",
        ("already holds 3 checkpoints", "another name"),
    ),
    Mistake(
        "checkpoint of another model",
        f"train {{recipe}} 'model.config={ {**TINY_LLAMA, 'num_hidden_layers': 3} }'",
        ("model.num_hidden_layers is 3 here and 2 in the checkpoint", "another name"),
    ),
    Mistake(
        "checkpoint of another family",
        f"train {{recipe}} 'model.config={GPT2_FIELDS}'",
        ("model.model_type is gpt2 here and llama in the checkpoint", "undo the change"),
    ),
    Mistake(
        "checkpoint of other data",
        "train {recipe}",
        ("data is ", "_train_", "in the checkpoint", "another name", "resume.allow_changes=[data]"),
        other_data,
    ),
    Mistake(
        "checkpoint of another seed",
        "train {recipe} seed=5",
        ("seed is 5 here and 1337 in the checkpoint", "another name"),
    ),
    Mistake(
        "checkpoint of another sequence length",
        "train {recipe} sequence_length=8",
        ("sequence_length is 8 here and 16 in the checkpoint", "resume.allow_changes=[sequence_length]"),
    ),
    Mistake(
        "fewer steps than were taken",
        "train {recipe} max_steps=20",
        ("max_steps is 20", "stands at step 24", "launch.sh finish"),
    ),
    Mistake(
        "checkpoint of another optimizer",
        "train {recipe} optimizer.name=muon",
        ("optimizer is muon here and adamw in the checkpoint", "resume.allow_changes=[optimizer]"),
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
        supervise.clusters, "clusters_folder", lambda: Path(supervise.__file__).parent.parent / "accelerate_configs"
    )
    monkeypatch.setattr(supervise.clusters, "count_gpus", lambda: 0)
    monkeypatch.setattr(supervise, "run_launch", lambda plan: pytest.fail("a mistake must be told before a launch"))
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
    for words in mistake.expected:
        assert words.replace("{tmp}", str(tmp)) in told, f"{words!r} is missing in:\n{told}"
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
        assert noted == finished_outcome and noted["outcome"] == "finished"
        assert attempt["outcome"] == "refused" and attempt["reason"] == reason and attempt["time"]
    else:
        assert noted["outcome"] == "refused" and noted["reason"] == reason and noted["exit_code"] == 2
    after = everything(place)
    mine = {f"runs/{name}/{file}" for file in ("outcome.json", "train.log", "journal.jsonl", ".lock")} | {
        f"runs/{name}"
    }
    mine |= {f"checkpoints/{name}", f"checkpoints/{name}/.lock"}
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
    told = paragraph(said)
    for words in (
        "another process is training tiny right now",
        str(place / "runs/tiny/.lock"),
        "wait for it, stop it, or give",
    ):
        assert words in told
    assert everything(place) == before


def test_a_run_that_was_refused_goes_on_once_the_mistake_is_mended(place):
    train(place / "tiny.yaml", "seed=5", exit_code=2)
    done = train(place / "tiny.yaml", "max_steps=26")
    assert "step 24 of 26" in done and outcome(place / "tiny.yaml")["outcome"] == "finished"


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
    assert "seed is 5 here" in paragraph(ended.stderr)
    noted = outcome(place / "tiny.yaml")
    assert ended.stdout == "" and noted["outcome"] == "finished" and noted["last_attempt"]["outcome"] == "refused"


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
        (["cpu", "shakespear"], "unknown recipe 'shakespear'; did you mean 'shakespeare'?"),
        (["cpu", "shakespeare", "optimiser.lr=1", "max_steps=x"], "unknown key optimiser; did you mean optimizer?"),
        (
            ["cpu_2proc", "{recipe}", "global_batch=2"],
            "global_batch 2 is not a multiple of micro_batch x processes = 2 x 2 = 4",
        ),
        (["cpu", "{recipe}", "data.train=[{place}/none.bin]"], "no shard matches"),
    ],
)
def test_launch_sh_exits_with_2_after_a_mistake(checkout, place, words, expected):
    before = everything(place)
    filled = [word.replace("{recipe}", str(place / "tiny.yaml")).replace("{place}", str(place)) for word in words]
    ended = launch_sh(checkout, *filled)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and expected in paragraph(ended.stderr)
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
    assert ended.returncode == 2 and ended.stdout == ""
    told = paragraph(ended.stderr)
    assert (
        "no Python of version 3.11 or newer" in told
        and (named or "python3.12") in told
        and "PYTHON=/path/to/python3" in told
    )
    assert not (checkout / ".venv").exists()


def test_a_set_up_that_cannot_make_its_environment_leaves_no_half_of_one(checkout, bare_path):
    shutil.rmtree(checkout / ".venv")
    executable(
        Path(bare_path) / "python3",
        '[ "$2" = -c ] && exit 0; mkdir -p "$4/bin"; echo "No space left on device" >&2; exit 1',
    )
    ended = launch_sh(checkout, PATH=bare_path, PYTHON="")
    assert ended.returncode == 2 and "No space left" in ended.stderr
    assert ".venv could not be made with python3" in paragraph(ended.stderr) and "free disk space" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_a_set_up_that_cannot_install_says_so_and_tries_again_next_time(checkout, bare_path):
    (checkout / ".venv" / ".installed").unlink()
    pip = 'case "$*" in *"-m pip"*) echo "Could not find a version" >&2; exit 1 ;; esac'
    executable(checkout / ".venv" / "bin" / "python", f'{pip}; exec "{sys.executable}" "$@"')
    for _ in range(2):
        ended = launch_sh(checkout, PATH=bare_path)
        assert ended.returncode == 2 and "Could not find a version" in ended.stderr
        assert "the packages could not be installed" in paragraph(ended.stderr) and "check the network" in ended.stderr
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
    assert ended.returncode == 0 and ended.stderr == "" and not (checkout / ".venv").exists()
    assert all(words in ended.stdout for words in ("--dry-run", "selftest", "report", "--setup"))
