"""The page that says everything a run can be: each setting's name, type, default and meaning, declared once (some in config/unattended.py).

`trainer settings`, the table in trainer/guides/settings.md and `--show-config` all read this page. A word of the field has one meaning
everywhere: a step is an optimizer step, a batch is counted in sequences, a loss is in nats per token.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.optimizers import OptimizerSettings, optimizer_section
from trainer.config.section import Fraction, NotNegative, Positive, Rate, Section
from trainer.config.unattended import AlertsConfig, HangConfig, RestartConfig, SafetyConfig

CHANGEABLE = ("data", "tokenizer", "sequence_length", "seed", "optimizer")
"""What resume.allow_changes may name, besides fields of the model."""


class DataConfig(Section):
    """Which tokens are trained on, and which are held out."""

    corpus: str | None = None
    """An embedded corpus (`shakespeare`) or a folder that `trainer prepare` wrote; gives train, validation and tokenizer."""
    train: list[str] = []
    """Shards to train on when there is no corpus: files, folders or patterns (llm.c, modded-nanogpt, build-nanogpt, NeMo, raw)."""
    validation: list[str] = []
    """Shards held out, in the same forms; empty: no validation loss, and no `best` checkpoint."""
    tokenizer: str | None = None
    """`gpt2`, `shakespeare` (4,096 entries), `bytes`, a `.tiktoken` file, a folder with a `tokenizer.json`, `hf:NAME[@REVISION]` of the hub, or a SentencePiece `.model`; by default the corpus's own."""
    vocab_size: Positive | None = None
    """Number of token ids, for shards whose tokenizer is not at hand; otherwise the tokenizer says it."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the tokens in shards without a header (nanoGPT's and OLMo's); shards with a header say it themselves."""
    skip_unreadable: bool = False
    """Whether shards that are there and cannot be read (a dangling link, no right to read) are left out, each named; otherwise they are refused."""


class ModelConfig(Section):
    """The model: any causal language model of transformers, from random weights or those of another model."""

    preset: str | None = None
    """A model by name, e.g. `gpt2-124m`, `llama-124m`, `llama-1b`."""
    config: dict[str, Any] = {}
    """Fields of the transformers config, over the preset's; with `model_type` and no preset a whole model of one's own."""
    init_from: str | None = None
    """Where the weights begin: a folder with `config.json` and safetensors, `hf:NAME[@REVISION]` of the hub, or `run:NAME[@STEP]` of a run; empty: random weights."""
    resize_vocabulary: bool = False
    """Whether a tokenizer larger than the model of `init_from` adds rows to embedding and head; otherwise it is refused."""
    gradient_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass instead of kept: less memory, about a third more time."""


class ScheduleConfig(Section):
    """The learning rate as a function of the step."""

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the warm-up; `wsd` is warm-up, stable, decay."""
    warmup_steps: NotNegative = 0
    """Steps of linear rise to the peak."""
    min_lr_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the peak."""
    decay_fraction: Fraction = 0.2
    """`wsd` only: the share of all steps in which the rate decays at the end."""


class CheckpointConfig(Section):
    """When a checkpoint is made and which are kept."""

    max_lost_work_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Bound on the seconds of training lost when the machine dies: sets the interval between checkpoints on disk; `.inf`: none by the clock."""
    max_overhead_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the training time that saving may cost; where both cannot be had, this one wins, and the log says so with figures."""
    max_disk_bytes: Positive | None = None
    """Bound on the bytes of all checkpoints of the run, the one being written included; empty: the disk's own."""
    every_steps: Positive | None = None
    """Steps between further checkpoints."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes between further checkpoints."""
    every_tokens: Positive | None = None
    """Tokens between further checkpoints."""
    keep_last: Positive = 3
    """How many of the newest are kept."""
    keep_best: NotNegative = 1
    """Number of checkpoints with the lowest validation loss that are kept too."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of this many steps are made and kept for good."""
    keep_epochs: NotNegative = 0
    """Number of checkpoints kept of those made at the ends of epochs; 0: none is made there."""
    max_failures: Positive = 3
    """Failed saves in a row after which the run stops: the disk will not repair itself."""
    asynchronous: bool = True
    """Whether a process beside the trainer writes from a snapshot in memory; false: training waits for every save."""
    mirror: str | None = None
    """Where checkpoints are copied to once they are committed: another disk's folder (relative to the project), or a URL that fsspec knows (s3://bucket/folder)."""
    mirror_every: Positive = 1
    """Number of committed checkpoints from one copy to the next."""
    mirror_keep: Positive = 3
    """How many are kept there."""
    mirror_bytes_per_second: Positive | None = None
    """Bandwidth that copying may take; empty: all there is."""


class EvaluationConfig(Section):
    """Validation loss and tasks during the run, and samples of what the model writes."""

    every_steps: Positive = 100
    """Steps between two evaluations; one more follows the last step."""
    num_sequences: Positive | None = None
    """How many held-out sequences are read, from the front; empty: all."""
    prompt: str = ""
    """How the samples of generated text begin; empty: as a document begins."""
    sample_prompts: list[str] = []
    """Several such beginnings, each of which is continued; empty: `evaluation.prompt` alone."""
    sample_tokens: NotNegative = 120
    """Length of a sample in tokens; 0: none."""
    samples_every_steps: NotNegative | None = None
    """Steps between two sets of samples; empty: with each evaluation; 0: only after the last step."""
    tasks: list[str] = []
    """Questions asked with the validation loss: `shakespeare_lines` (built in), JSONL files, or `hellaswag`, `piqa`, `arc_easy`, `arc_challenge`, `copa`, `winogrande`, `lambada` from the hub."""
    tasks_every_steps: Positive | None = None
    """Steps between two evaluations of the tasks, a multiple of `every_steps`; empty: with each. The last step has one in any case."""
    task_items: Positive | None = 200
    """How many items of each task are read, from the front; empty: all."""


class MetricsConfig(Section):
    """What is written down about each step, and where."""

    console_every_steps: Positive = 10
    """Steps between two lines in the log; metrics.jsonl has every step."""
    trackers: list[str] = ["tensorboard"]
    """Trackers of Accelerate, by name: tensorboard, wandb, trackio, mlflow ..."""
    tracker_options: dict[str, dict[str, Any]] = {}
    """What a tracker's own opening call is given, by the tracker's name: `{wandb: {entity: me}}`."""
    detail_every_steps: NotNegative | None = None
    """Steps between two looks at the details (each layer group's norms, where a step's time goes); empty: a hundred-thousandth of the run, and at least 10; 0: none of layer groups."""
    histogram_every_steps: NotNegative | None = None
    """Steps between two histograms of every weight and gradient; empty: a hundredth of the run, and at least 100; 0: none."""
    slow_ratio: Annotated[float, Field(gt=1)] | None = 2.0
    """A warning comes once steps take this many times as long as in the best stretch of the launch (medians of 20 steps and 60 s at least); empty: never."""


class ProfileConfig(Section):
    """What is recorded to find out where time and GPU memory go."""

    steps: tuple[Positive, Positive] | None = None
    """The first and the last step that torch's profiler records, into `runs/NAME/profile`; empty: none."""
    memory_history: bool = False
    """Whether each allocation on a GPU is recorded, so that running out of memory leaves a snapshot; 2 us and some kB each."""


class ResumeConfig(Section):
    """What may be another in a resume than it was in the checkpoint."""

    allow_changes: tuple[str, ...] = ()
    """What a resume may change that it refuses otherwise: `data`, `tokenizer`, `sequence_length`, `seed`, `optimizer` (its moments begin anew), `model.FIELD`. Shapes and vocabulary size never; all other settings may change, and are reported."""

    @field_validator("allow_changes")
    @classmethod
    def _are_known(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(key not in CHANGEABLE and not re.fullmatch(r"model\.\w+", key) for key in keys):
            known = ", ".join(CHANGEABLE)
            raise ValueError(f"a list of these: {known}, model.FIELD (all other settings may change anyway)")
        return keys


class PrecisionConfig(Section):
    """fp8, where the cluster file's mixed_precision asks for it, and what fp32 means on a GPU."""

    recipe: Literal["auto", "current", "delayed", "block", "mxfp8", "nvfp4"] = "auto"
    """How tensors are scaled: `current`, `delayed`, `block`, `mxfp8` or `nvfp4`; `auto` is the fastest that `bench precision` measured for such a run, and where nobody measured, mxfp8 on Blackwell (compute capability 10) and current elsewhere."""
    format: Literal["hybrid", "e4m3"] | None = None
    """`hybrid` (gradients in e5m2) or `e4m3`; empty: the recipe's own."""
    options: dict[str, Any] = {}
    """Further arguments of TransformerEngine's recipe, e.g. `{amax_history_len: 16}` of delayed; one that it would drop is an error."""
    required: bool = False
    """Whether a run that cannot have fp8 is refused, instead of trained in bf16 with an announcement."""
    bf16_first_blocks: NotNegative = 1
    """Number of leading blocks kept in bf16."""
    bf16_last_blocks: NotNegative = 1
    """Number of trailing blocks kept in bf16."""
    cache_weights: bool = True
    """Whether fp8 copies of the weights are kept over the micro-batches of a step, which changes no bit; not with `delayed`, where it would."""
    statistics_every_steps: NotNegative = 100
    """Steps between two looks at how well tensors fit into fp8 (largest value, underflow, overflow); 0: none."""
    shadow_every_steps: NotNegative = 500
    """Steps between two comparisons of the loss with bf16's on one micro-batch, which cost two forward passes of it; 0: none."""
    max_loss_gap: Annotated[float, Field(gt=0)] = 0.02
    """The run goes back to bf16 once the loss in fp8 is more than this fraction above bf16's in three comparisons in a row."""
    tf32: bool = False
    """Whether matrix products in fp32 on a GPU (under `mixed_precision: no`) may take TF32: several times as fast, with 10 bits of mantissa instead of 23."""


if TYPE_CHECKING:
    OptimizerConfig = OptimizerSettings
else:
    OptimizerConfig = optimizer_section()
"""The section `optimizer`: what all optimizers share, and what each entry of config/optimizers.py adds."""


class Config(Section):
    """One run, whole."""

    name: str = ""
    """Names the run's folders; by default the recipe's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """Seeds the weights, the order of the data and every random stream."""
    max_steps: Positive
    """Optimizer steps in the whole run; or set `max_tokens` or `max_epochs` instead, from which it is computed."""
    max_tokens: Positive | None = None
    """Tokens in the whole run, instead of `max_steps`: the least number of steps that takes them."""
    max_epochs: Rate | None = None
    """Passes over the training data in the whole run, instead of `max_steps`, from the size of the data; may have a fraction."""
    max_hours: Rate | None = None
    """Hours after which a launch stops by itself with a checkpoint and exit code 75, as before the end of a scheduler's time; so early that the save fits."""
    global_batch: Positive
    """Sequences in one optimizer step, over all processes."""
    micro_batch: Positive
    """Sequences that one process takes through the model at once; the rest is gradient accumulation."""
    sequence_length: Positive
    """Tokens in a sequence."""
    resume_from_checkpoint: str = "latest"
    """`latest` (newest sound one; a fresh start when the run has none), `best`, a step, a checkpoint's folder, or `none`."""
    deterministic: bool = True
    """Whether a replay is equal to the last bit; on a GPU it restricts cuBLAS, attention and collectives, at a cost that is printed in percent of a step."""
    preflight: bool | Literal["auto"] = "auto"
    """Whether a step and an evaluation of full shape are tried before the first one counts, and the ranks, clocks and limits checked; `auto`: yes, unless this run's last start passed it with the same settings on the same machine."""
    checkpoints_folder: str = "checkpoints"
    """Where `NAME/step-*` go; relative to the project."""
    runs_folder: str = "runs"
    """Where `NAME/` with logs, metrics and TensorBoard events goes; relative to the project."""
    plugins: list[str] = []
    """Packages of your own that register architectures with AutoConfig and AutoModelForCausalLM; installed beside the trainer, and imported before a model is built."""
    resume: ResumeConfig = ResumeConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    metrics: MetricsConfig = MetricsConfig()
    profile: ProfileConfig = ProfileConfig()
    safety: SafetyConfig = SafetyConfig()
    restart: RestartConfig = RestartConfig()
    hang: HangConfig = HangConfig()
    alerts: AlertsConfig = AlertsConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Config":
        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self


def contradictions(config: Config) -> list[str]:
    """Every way in which settings that are fine alone do not fit together, as sentences."""
    name = [problem] if config.name and (problem := name_problem(config.name)) else []
    return [*_of_the_steps(config), *_of_what_is_trained(config), *precision_contradictions(config), *name]


def _of_the_steps(config: Config) -> Iterator[str]:
    """What contradicts itself in batches, steps and where they begin."""
    if config.global_batch % config.micro_batch:
        below = config.global_batch // config.micro_batch * config.micro_batch
        near = ", ".join(str(n) for n in (below, below + config.micro_batch) if n > 0)
        yield f"global_batch {config.global_batch} is not a multiple of micro_batch {config.micro_batch}; nearest: {near}"
    if config.schedule.warmup_steps > config.max_steps:
        longer = f"schedule.warmup_steps {config.schedule.warmup_steps} is more than max_steps {config.max_steps}"
        yield f"{longer}; shorten the warm-up or lengthen the run"
    if config.profile.steps and config.profile.steps[0] > config.profile.steps[1]:
        yield f"profile.steps {list(config.profile.steps)} ends before it begins; give the first and the last step, e.g. [100, 105]"
    elif config.profile.steps and config.profile.steps[0] > config.max_steps:
        late = f"begins after the last step (max_steps is {config.max_steps})"
        yield f"profile.steps {list(config.profile.steps)} {late}; profile earlier ones"
    if not config.resume_from_checkpoint:
        yield "resume_from_checkpoint is empty; give latest, best, a step, the path of a checkpoint's folder, or none for a fresh start"


def _of_what_is_trained(config: Config) -> Iterator[str]:
    """What contradicts itself in data, model and tasks."""
    data, evaluation = config.data, config.evaluation
    if not data.corpus and not data.train:
        yield "no data: set data.corpus (an embedded corpus or a folder of `trainer prepare`) or data.train (shards)"
    if data.corpus and (data.train or data.validation):
        yield "data.corpus already names train and validation shards; set either data.corpus or data.train and data.validation"
    if data.train and not data.tokenizer and not data.vocab_size:
        yield "data.train needs data.tokenizer (or, where the tokenizer is not at hand, data.vocab_size)"
    yield from _of_the_model(config.model)
    if (evaluation.tasks_every_steps or 0) % evaluation.every_steps:
        yield (
            f"evaluation.tasks_every_steps {evaluation.tasks_every_steps} is not a multiple of evaluation.every_steps {evaluation.every_steps}, "
            "and tasks are evaluated with the validation loss; change one of the two"
        )
    if evaluation.tasks and not data.corpus and not (data.validation and data.tokenizer):
        yield (
            "evaluation.tasks needs data.validation, since tasks are evaluated with the validation loss, and data.tokenizer, to read their text; "
            "set both, or evaluation.tasks=[]"
        )


def _of_the_model(model: ModelConfig) -> Iterator[str]:
    """Why these settings name no model, or two."""
    if model.init_from and model.preset:
        yield f"model.init_from {model.init_from} says what the model is, and model.preset {model.preset} another; set one of the two to null"
    if model.resize_vocabulary and not model.init_from:
        yield "model.resize_vocabulary adds rows to the model of model.init_from, and there is none; leave it out, or set model.init_from"
    if not model.init_from and not model.preset and "model_type" not in model.config:
        yield "no model: set model.preset (e.g. llama-124m), model.init_from, or model.config.model_type with the fields of that type"


def name_problem(name: str) -> str | None:
    """Why a run cannot have this name, which is its folders'; None when it can."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{,199}", name):
        return None
    return f"name {name!r} cannot name a folder; use letters, digits, '-', '_' and '.', at most 200, and no leading dot"


def precision_contradictions(config: Config) -> list[str]:
    """What the precision block asks for and another setting excludes."""
    problems = []
    if config.precision.recipe == "delayed" and config.model.gradient_checkpointing:
        problems.append(
            "precision.recipe delayed and model.gradient_checkpointing do not go together: what is computed again would be scaled otherwise; "
            "take precision.recipe=current or set model.gradient_checkpointing=false"
        )
    if config.precision.recipe == "nvfp4" and config.precision.format == "hybrid":
        problems.append("precision.format hybrid is not a format of precision.recipe nvfp4; leave precision.format out")
    return problems
