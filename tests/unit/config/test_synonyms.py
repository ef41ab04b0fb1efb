"""Settings under the names of other trainers: each is answered with ours, and how its value translates."""

import pytest

from tests.commands import trainer
from tests.messages import says
from trainer.config.cluster_keys import KEYS
from trainer.config.load import load
from trainer.config.settings import settings_help
from trainer.config.synonyms import SECTIONS, SYNONYMS
from trainer.errors import ConfigError

OURS = {name for name, _, _ in settings_help()}

HUGGING_FACE = {
    "learning_rate": "optimizer.lr",
    "gradient_accumulation_steps": "global_batch",
    "per_device_train_batch_size": "micro_batch",
    "logging_steps": "metrics.console_every_steps",
    "save_steps": "checkpoint.every_steps",
    "eval_steps": "evaluation.every_steps",
    "num_train_epochs": "max_epochs",
    "epochs": "max_epochs",
    "lr_scheduler_type": "schedule.name",
    "warmup_ratio": "schedule.warmup_steps",
    "warmup_steps": "schedule.warmup_steps",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "max_grad_norm": "optimizer.max_grad_norm",
    "save_total_limit": "checkpoint.keep_last",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "output_dir": "name",
    "run_name": "name",
    "report_to": "metrics.trackers",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "torch_compile": "dynamo_config",
    "optim": "optimizer.name",
    "fsdp": "distributed_type",
    "torch_compile_backend": "dynamo_config",
    "metric_for_best_model": "checkpoint.keep_best",
    "do_train": "leave it out",
    "logging_strategy": "metrics.console_every_steps",
    "lr_scheduler_kwargs": "schedule.min_lr_fraction",
    "optim_args": "optimizer.betas",
    "push_to_hub": "trainer export",
    "attn_implementation": "leave it out",
    "group_by_length": "leave it out",
    "eval_on_start": "trainer eval",
    "ddp_find_unused_parameters": "leave it out",
    "save_only_model": "trainer export",
}
NANOGPT = {
    "batch_size": "micro_batch",
    "block_size": "sequence_length",
    "max_iters": "max_steps",
    "lr_decay_iters": "max_steps",
    "warmup_iters": "schedule.warmup_steps",
    "min_lr": "schedule.min_lr_fraction",
    "beta1": "optimizer.betas",
    "grad_clip": "optimizer.max_grad_norm",
    "eval_interval": "evaluation.every_steps",
    "eval_iters": "evaluation.num_sequences",
    "log_interval": "metrics.console_every_steps",
    "init_from": "model.init_from",
    "out_dir": "name",
    "wandb_log": "metrics.trackers",
    "n_layer": "model.config",
    "dtype": "mixed_precision",
    "compile": "dynamo_config",
    "device": "use_cpu",
    "dataset": "data.corpus",
    "decay_lr": "schedule.name",
    "backend": "leave it out",
    "eval_only": "trainer eval",
}
TORCHTITAN = {
    "training.steps": "max_steps",
    "training.local_batch_size": "micro_batch",
    "training.global_batch_size": "global_batch",
    "training.seq_len": "sequence_length",
    "training.max_norm": "optimizer.max_grad_norm",
    "lr_scheduler.warmup_steps": "schedule.warmup_steps",
    "lr_scheduler.decay_ratio": "schedule.decay_fraction",
    "lr_scheduler.decay_type": "schedule.name",
    "lr_scheduler.min_lr_factor": "schedule.min_lr_fraction",
    "checkpoint.interval": "checkpoint.every_steps",
    "checkpoint.keep_latest_k": "checkpoint.keep_last",
    "metrics.log_freq": "metrics.console_every_steps",
    "model.flavor": "model.preset",
    "activation_checkpoint.mode": "model.gradient_checkpointing",
    "compile.enable": "dynamo_config",
    "validation.freq": "evaluation.every_steps",
    "parallelism.tensor_parallel_degree": "parallel over data",
    "profiling.enable_profiling": "profile.steps",
    "checkpoint.enable": "leave it out",
    "checkpoint.enable_checkpoint": "leave it out",
    "checkpoint.initial_load_path": "resume_from_checkpoint",
    "checkpoint.load_step": "resume_from_checkpoint",
    "checkpoint.export_dtype": "trainer export",
    "checkpoint.last_save_model_only": "trainer export",
    "training.gc_freq": "leave it out",
    "training.mixed_precision_reduce": "mixed_precision",
    "optimizer.implementation": "leave it out",
    "lr_scheduler.lr_min": "schedule.min_lr_fraction",
    "model.n_layers": "model.config",
    "comm.init_timeout_seconds": "leave it out",
}
LITGPT = {
    "train.max_tokens": "max_tokens",
    "train.max_steps": "max_steps",
    "train.epochs": "max_epochs",
    "train.global_batch_size": "global_batch",
    "train.micro_batch_size": "micro_batch",
    "train.max_seq_length": "sequence_length",
    "train.lr_warmup_steps": "schedule.warmup_steps",
    "train.save_interval": "checkpoint.every_steps",
    "train.log_interval": "metrics.console_every_steps",
    "train.min_lr": "schedule.min_lr_fraction",
    "eval.interval": "evaluation.every_steps",
    "eval.max_iters": "evaluation.num_sequences",
    "eval.max_new_tokens": "evaluation.sample_tokens",
    "devices": "num_processes",
    "num_nodes": "num_machines",
    "logger_name": "metrics.trackers",
    "model_name": "model.preset",
    "initial_checkpoint_dir": "resume_from_checkpoint",
    "eval.initial_validation": "trainer eval",
    "eval.final_validation": "leave it out",
    "optimizer.class_path": "optimizer.name",
    "optimizer.init_args.lr": "optimizer.lr",
    "optimizer.init_args.weight_decay": "optimizer.weight_decay",
}
TRAINERS = {"Hugging Face": HUGGING_FACE, "nanoGPT": NANOGPT, "torchtitan": TORCHTITAN, "litgpt": LITGPT}


@pytest.mark.parametrize("which", TRAINERS)
def test_a_name_of_another_trainer_is_answered_with_ours(which):
    with pytest.raises(ConfigError) as caught:
        load("shakespeare", [f"{name}=1" for name in TRAINERS[which]])
    answers = {problem.split()[2]: problem for problem in caught.value.problems}
    assert answers.keys() == TRAINERS[which].keys()
    assert [(name, answers[name]) for name, ours in TRAINERS[which].items() if ours not in answers[name]] == []


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("optimizer=AdamW", "optimizer.name"),
        ("data=OpenWebText", "data.corpus"),
        ("model=llama-1b", "model.preset"),
        ("schedule=cosine", "schedule.name"),
        ("checkpoint=100", "checkpoint.every_steps"),
        ("evaluation=100", "evaluation.every_steps"),
        ("metrics=wandb", "metrics.trackers"),
        ("profile=[3,4]", "profile.steps"),
        ("safety=3", "safety.max_bad_steps"),
        ("precision=bf16", "mixed_precision"),
        ("resume=true", "resume_from_checkpoint"),
    ],
)
def test_one_value_for_a_section_is_answered_with_the_setting_that_is_meant(typed, ours):
    """As litgpt writes `optimizer: AdamW` and `data: OpenWebText`."""
    with pytest.raises(ConfigError) as caught:
        load("shakespeare", [typed])
    assert caught.value.problems[0].endswith((f" {ours}", f"'s {ours}"))


@pytest.mark.parametrize("name", SYNONYMS)
def test_every_synonym_is_of_a_setting_that_there_is_and_says_how_its_value_translates(name):
    synonym = SYNONYMS[name]
    assert synonym.ours in (KEYS if synonym.in_cluster_file else {"", *OURS})
    assert len(synonym.rule) > 3
    assert name not in OURS, "a setting of ours would never be asked for"


def test_the_settings_in_a_section_of_another_trainer_are_answered_one_by_one(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text("base: shakespeare\ntraining:\n  seq_len: 2048\n  qqqq: 1\nlr_scheduler: {warmup_steps: 10}\n")
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    keys = [(problem.split()[2], problem.split()[3]) for problem in caught.value.problems]
    assert keys == [
        ("training.seq_len", "(theirs.yaml:3);"),
        ("training.qqqq", "(theirs.yaml:4);"),
        ("lr_scheduler.warmup_steps", "(theirs.yaml:5);"),
    ]
    assert SECTIONS.isdisjoint({name.partition(".")[0] for name in OURS})


def test_a_section_of_ours_is_none_of_theirs():
    said = trainer("launch", "cpu", "shakespeare", "mixed_precision=bf16", "--dry-run")
    assert said.code == 2
    says(said.err, "mixed_precision", "cluster file")
