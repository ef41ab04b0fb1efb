"""What other trainers call a setting, and how its value translates: the Trainer of Hugging Face, nanoGPT, torchtitan and litgpt.

Nothing is taken by such a name, since a value may mean something else there; the refusal of an unknown key says what to write.
"""

import re
from dataclasses import dataclass

from trainer.config.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Synonym:
    """One setting of this trainer under another trainer's name."""

    ours: str
    """Our key; empty where there is none and none is needed."""
    rule: str
    """How the value translates, as words."""
    in_cluster_file: bool = False

    @property
    def words(self) -> str:
        """The second half of a refusal."""
        if not self.ours:
            return self.rule
        return f"here it is {self.ours}{' of the cluster file' if self.in_cluster_file else ''}: {self.rule}"


_SETTINGS = f"""
# How long
max_steps: the value stays the same
    max_iters lr_decay_iters num_steps total_steps train_steps num_train_steps training.steps steps lr_max_steps
max_tokens: the value stays the same
    train.max_tokens total_tokens train_tokens max_train_tokens
max_epochs: the value stays the same
    num_train_epochs num_epochs epochs epoch train.epochs
# Batches; here they are counted in sequences
micro_batch: sequences that one process takes at once; all processes and accumulation together are global_batch
    per_device_train_batch_size per_gpu_train_batch_size micro_batch_size local_batch_size device_batch_size batch_size train_batch_size
global_batch: in sequences; a number of tokens is divided by sequence_length
    global_batch_size total_batch_size
global_batch: micro_batch x processes x accumulation steps (nanoGPT's count is over all processes already: micro_batch x accumulation steps)
    gradient_accumulation_steps gradient_accumulation_iters accumulate_grad_batches grad_accum_steps
sequence_length: the value stays the same
    block_size seq_len seq_length max_seq_length max_seq_len context_length ctx_len max_length n_ctx
micro_batch: evaluation takes as many sequences at once as training
    per_device_eval_batch_size eval_batch_size
# Optimizer
optimizer.lr: the value stays the same
    learning_rate max_lr peak_lr base_lr
optimizer.betas: e.g. [0.9, 0.95]; optimizer.eps and optimizer.weight_decay stand beside it
    optim_args
optimizer.betas: the first of the two, e.g. [0.9, 0.95]
    beta1 beta_1 adam_beta1
optimizer.betas: the second of the two, e.g. [0.9, 0.95]
    beta2 beta_2 adam_beta2
optimizer.eps: the value stays the same
    adam_epsilon epsilon
optimizer.max_grad_norm: the value stays the same; .inf for no clipping
    grad_clip max_norm clip_grad gradient_clip_val gradient_clipping clip_grad_norm
optimizer.name: {" or ".join(OPTIMIZERS)}; adamw for adamw_torch, adamw_torch_fused and AdamW
    optim optimizer_name optimizer.class_path
optimizer.weight_decay: the value stays the same
    wd
# Schedule
schedule.name: cosine, linear or constant (for constant_with_warmup) or wsd (for warmup_stable_decay)
    lr_scheduler_type decay_type scheduler lr_schedule
schedule.warmup_steps: a number of optimizer steps, as there
    warmup_iters lr_warmup_steps num_warmup_steps lr_warmup_iters
schedule.warmup_steps: the fraction x max_steps
    warmup_ratio lr_warmup_fraction warmup_fraction
schedule.min_lr_fraction: the lowest learning rate / optimizer.lr; schedule.warmup_steps and schedule.decay_fraction stand beside it
    lr_scheduler_kwargs
schedule.min_lr_fraction: the lowest learning rate / optimizer.lr
    min_lr lr_end lr_min
schedule.min_lr_fraction: the value stays the same
    min_lr_factor min_lr_ratio min_lr_rate
schedule.decay_fraction: the value stays the same
    decay_ratio
schedule.name: constant for false, cosine for true
    decay_lr
# Checkpoints
checkpoint.every_steps: a number of optimizer steps, as there
    save_steps save_interval checkpoint.interval checkpoint_interval save_every ckpt_interval
checkpoint.keep_last: the value stays the same
    save_total_limit keep_latest_k
checkpoint.keep_best: how many of the best are kept (1 by default); `--checkpoint best` names it
    load_best_model_at_end save_best
checkpoint.asynchronous: false for disabled, true for the others
    async_mode
checkpoint.keep_best: how many of the lowest validation loss are kept
    metric_for_best_model greater_is_better
checkpoint.every_steps: a number of steps; checkpoints by the clock are made anyway
    save_strategy always_save_checkpoint
resume_from_checkpoint: latest, best, a step, a checkpoint's folder, or none (for scratch)
    resume_from overwrite_output_dir initial_checkpoint_dir initial_load_path load_step
name: a name, by which there are runs/NAME and checkpoints/NAME; other places are runs_folder and checkpoints_folder
    output_dir out_dir job.dump_folder dump_folder save_dir
checkpoints_folder: the value stays the same
    checkpoint.folder
runs_folder: the value stays the same
    logging_dir log_dir
# Evaluation and log
evaluation.every_steps: a number of optimizer steps, as there
    eval_steps eval_interval eval.interval validation.freq val_check_interval eval_every
evaluation.num_sequences: in sequences: the number of batches x their size
    eval_iters eval.max_iters validation.steps max_eval_samples
evaluation.every_steps: a number of steps
    eval_strategy evaluation_strategy
evaluation.sample_tokens: the value stays the same
    max_new_tokens
metrics.console_every_steps: a number of steps; metrics.jsonl and TensorBoard have every step
    logging_steps logging_strategy logging_first_step log_interval log_freq log_every log_every_n_steps
metrics.trackers: a list: [tensorboard], [wandb] ..., [] for none
    report_to logger_name
metrics.trackers: [tensorboard, wandb] for true
    wandb_log enable_wandb
metrics.trackers: [tensorboard] for true, [] for false
    enable_tensorboard
metrics.tracker_options: {{wandb: {{project: NAME}}}}
    wandb_project
name: the value stays the same
    run_name wandb_run_name exp_name experiment_name
profile.steps: the first and the last step to record, e.g. [100, 105]
    enable_profiling
# Data and model
data.corpus: shakespeare, or a folder that `trainer prepare` wrote; data.train names shards
    dataset dataset_name dataset_path train_data
data.tokenizer: gpt2, shakespeare, bytes, a .tiktoken file, a folder with a tokenizer.json, or hf:NAME
    tokenizer_name tokenizer_path tokenizer_dir hf_assets_path
model.preset: a preset, e.g. gpt2-124m, llama-124m, llama-1b
    model_name config_name flavor model.name
model.init_from: a folder, hf:NAME of the hub, or run:NAME; resuming is resume_from_checkpoint, a model by name with random weights model.preset
    model_name_or_path pretrained_model_name_or_path pretrained_model base_model init_from
model.config: a field of the transformers config, under its name there, e.g. model.config.num_hidden_layers=12
    n_layer n_head n_embd n_layers n_heads d_model dim dropout bias hidden_size num_hidden_layers num_attention_heads tie_embeddings
model.gradient_checkpointing: true or false
    activation_checkpointing activation_checkpoint.mode activation_checkpoint
seed: the value stays the same
    data_seed random_seed seed_everything
deterministic: the value stays the same
    full_determinism
precision.recipe: auto, current, delayed, block, mxfp8 or nvfp4; mixed_precision: fp8 in the cluster file asks for it
    float8_recipe fp8_recipe
# What a command does
-: the validation loss of any checkpoint is taken by `trainer eval`; leave it out
    eval_only do_eval eval_on_start initial_validation
-: a folder that transformers opens is made at the end of a run and by `trainer export` (--dtype bf16); leave it out
    push_to_hub hub_model_id save_only_model export_dtype last_save_model_only
# What needs no setting
-: it is always done; leave it out
    do_train enable enable_checkpoint final_validation
-: this trainer chooses that itself; leave it out
    backend ddp_find_unused_parameters init_timeout_seconds gc_freq implementation remove_unused_columns group_by_length
    attn_implementation use_liger_kernel
-: shards are read without workers of their own; leave it out
    dataloader_num_workers num_workers dataloader_pin_memory
-: this version is parallel over data only, each process with the whole model or, by FSDP, with a part of it; leave it out
    deepspeed tensor_parallel_degree pipeline_parallel_degree context_parallel_degree
"""
"""Our key (-: there is none) and how the value translates; below it their names. A name with a section means that setting only."""

_CLUSTER_KEYS = """
mixed_precision: no (fp32), bf16, fp16 or fp8
    mixed_precision dtype mixed_precision_param mixed_precision_reduce precision_type
mixed_precision: bf16 for true
    bf16
mixed_precision: fp16 for true
    fp16
mixed_precision: fp8 for true
    fp8 float8
dynamo_config: as in accelerate_configs/
    compile torch_compile torch_compile_backend torch_compile_mode compile.enable compile_model
use_cpu: true for CPUs
    device use_cpu no_cuda accelerator
distributed_type: FSDP, with fsdp_config: {fsdp_version: 2}
    fsdp fsdp_config data_parallel_shard_degree
num_processes: the processes of all machines
    devices num_gpus n_gpu nproc_per_node num_processes world_size
num_machines: the value stays the same
    num_nodes nnodes num_machines
"""
"""The same for what the cluster file says."""


def _read(rows: str, *, in_cluster_file: bool) -> dict[str, Synonym]:
    """Their name -> ours, of a table like the two above."""
    return {
        name: Synonym(ours.strip("-"), rule, in_cluster_file)
        for ours, rule, names in re.findall(r"^(\S+): (.+)\n((?: .+\n)+)", rows, re.MULTILINE)
        for name in names.split()
    }


SYNONYMS = _read(_SETTINGS, in_cluster_file=False) | _read(_CLUSTER_KEYS, in_cluster_file=True)

_SECTIONS = """
training train eval lr_scheduler activation_checkpoint parallelism compile float8 profiling validation job quantize comm
"""
SECTIONS = set(_SECTIONS.split())
"""The sections of torchtitan and litgpt that this trainer has under other names."""


def synonym_of(key: str) -> Synonym | None:
    """What another trainer's key is here, by its whole name or by its last word."""
    return SYNONYMS.get(key) or SYNONYMS.get(key.rpartition(".")[2])
