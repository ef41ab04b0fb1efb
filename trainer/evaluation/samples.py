"""What the model writes now: for the run's fixed prompts a text of the likeliest tokens and one drawn at temperature, in one pass.

The same weights give the same samples: neither the step nor any random state counts. They are taken on the bare model, so nothing is compiled
for their shapes; rank 0 takes them alone where it holds the model whole, so that no other rank is waited for.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

from trainer.config.schema import EvaluationConfig
from trainer.errors import ConfigError
from trainer.evaluation.generate import NOT_FINITE, Limits, Row, Sampling, Tokenizer, generate
from trainer.evaluation.loss import one_thread
from trainer.parallel import Reads

LIKELIEST, DRAWN = "likeliest", "drawn"
KINDS = {LIKELIEST: Sampling(temperature=0.0), DRAWN: Sampling(temperature=0.8, top_k=50)}
"""The two samples of each prompt."""

_WORDS = {LIKELIEST: "the likeliest token each time", DRAWN: "drawn at temperature 0.8 from the 50 likeliest"}


SAMPLES_READ = Reads.WHOLE_MODEL
"""On which ranks samples are taken: passes of the whole model on inputs that are the same everywhere."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote."""

    prompt: str
    kind: str
    """`likeliest` or `drawn`."""
    text: str
    """What follows the prompt; where the logits were not finite, it ends by saying so."""


def prompts_of(wanted: EvaluationConfig) -> list[str]:
    """The prompts of a run's samples; none where they have no length."""
    return (wanted.sample_prompts or [wanted.prompt]) if wanted.sample_tokens else []


def samples_due(wanted: EvaluationConfig, step: int, max_steps: int, is_evaluated: bool) -> bool:
    """Whether samples are taken at this step: at the last one in any case, and before it every `samples_every_steps`, by default with each evaluation."""
    every = wanted.samples_every_steps
    with_the_others = is_evaluated if every is None else every > 0 and step % every == 0
    return bool(prompts_of(wanted)) and (step == max_steps or with_the_others)


def check_prompts(prompts: Sequence[str], tokenizer: Tokenizer, sequence_length: int) -> None:
    """Refuses prompts that leave a sample no position, now and not once it is taken."""
    for prompt in prompts:
        if (num_tokens := len(_ids(prompt, tokenizer))) >= sequence_length:
            raise ConfigError(
                f"the prompt {_shortened(prompt)} of evaluation.prompt or evaluation.sample_prompts has {num_tokens} tokens with the one before it, and "
                f"sequence_length is {sequence_length}, which leaves none for the sample; shorten it, or set evaluation.sample_tokens to 0"
            )


def take_samples(
    model: nn.Module,
    prompts: Sequence[str],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    seed: int,
    agree_on: Callable[[list[int]], list[int]] = list,
) -> list[Sample]:
    """Both samples of each prompt; leaves mode and random state of the model's run as they were.

    model     the transformers model itself, not what `prepare` made of it
    agree_on  as `generate` takes it
    raises    ConfigError when a prompt leaves no position free
    """
    wanted = [(prompt, kind) for prompt in prompts for kind in KINDS]
    rows = [Row(prompt_ids=_ids(prompt, tokenizer), sampling=KINDS[kind], seed=seed) for prompt, kind in wanted]
    # A token is so little work that threads would wait for each other, on a busy machine most of the time.
    with one_thread() if next(model.parameters()).device.type == "cpu" else nullcontext():
        written = generate(model, rows, limits, agree_on=agree_on)
    found = []
    for (prompt, kind), row in zip(wanted, written):
        broken = " [the logits are not finite]" if row.ended_by == NOT_FINITE else ""
        found.append(Sample(prompt, kind, tokenizer.decode(row.tokens) + broken))
    return found


def markdown(samples: Sequence[Sample]) -> str:
    """Samples for TensorBoard's text tab: each as a block of its own, in which nothing a model writes is taken for markup."""
    return "\n\n".join(f"**{_WORDS[sample.kind]}**\n\n{_block(sample.prompt + sample.text)}" for sample in samples)


def _block(text: str) -> str:
    """Lines that stand as they are: Markdown takes four spaces at the beginning of a line for that."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "


def _ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.start_id, *tokenizer.encode(prompt)]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
