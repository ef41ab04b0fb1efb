"""The one home of generated configs and sets of checkpoints."""

import string
from math import isfinite

from hypothesis import assume
from hypothesis import strategies as st

from tests.small_checkpoints import manifest_of
from trainer.config.schema import Config

words = st.text(st.sampled_from(string.ascii_letters + string.digits + " -_.:#'\"\\%{}[]&*!|>@\u00e9\n"), max_size=12)
"""Text with everything that means something in YAML."""

tricky = st.sampled_from(
    ["on", "null", "~", "1e5", "0123", "2026-01-01", "1:30", "no", "-", "=", "<<", "{}", " x ", ""]
)

texts = words | tricky
positive = st.integers(1, 10**9)
fractions = st.floats(0, 1)
betas = st.floats(0, 1, exclude_max=True)
rates = st.floats(min_value=1e-300, max_value=1e300) | st.sampled_from([6e-4, 3, 1e-8])


plain = (
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
json_values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


@st.composite
def configs(draw) -> Config:
    """Any config that is without contradiction."""
    micro_batch, max_steps = draw(st.integers(1, 64)), draw(positive)
    has_corpus = draw(st.booleans())
    data = (
        {"corpus": draw(texts.filter(bool))}
        if has_corpus
        else {
            "train": draw(st.lists(texts, min_size=1, max_size=3)),
            "validation": draw(st.lists(texts, max_size=2)),
            "tokenizer": draw(texts.filter(bool)),
            "vocab_size": draw(st.none() | positive),
        }
    )
    return Config.model_validate(
        {
            "name": draw(st.from_regex(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,20})", fullmatch=True)),
            "seed": draw(st.integers(0, 2**40)),
            "max_steps": max_steps,
            "micro_batch": micro_batch,
            "global_batch": micro_batch * draw(st.integers(1, 64)),
            "sequence_length": draw(positive),
            "resume_from_checkpoint": draw(texts.filter(bool)),
            "deterministic": draw(st.booleans()),
            "data": data,
            "model": {
                "preset": draw(texts.filter(bool)),
                "config": draw(st.dictionaries(texts, json_values, max_size=3)),
            },
            "optimizer": {
                "name": draw(st.sampled_from(["adamw", "muon"])),
                "lr": draw(rates),
                "betas": [draw(betas), draw(betas)],
            },
            "schedule": {"warmup_steps": draw(st.integers(0, max_steps)), "min_lr_fraction": draw(fractions)},
            "evaluation": {"prompt": draw(texts), "num_sequences": draw(st.none() | positive)},
            "metrics": {"trackers": draw(st.lists(texts, max_size=2))},
        }
    )


losses = st.none() | st.floats(0, 20) | st.sampled_from([1.0, float("nan"), float("inf")])


@st.composite
def checkpoint_sets(draw) -> list:
    """Manifests of some steps in any order: evaluated or not, pinned or not, some at the end of an epoch.

    The newest's validation data are those of an evaluated one, or there is one kind of them: a run whose data changed to some that it
    never evaluated on, after it went back and forth between two others, is left out.
    """
    steps = draw(st.lists(st.integers(1, 40) | st.integers(1, 10**9), unique=True, max_size=12))
    reasons = st.sampled_from(["periodic", "best", "interrupt", "final"])
    kinds = draw(st.sampled_from([(None,), ("a",), ("a", "b")]))
    manifests = [
        manifest_of(
            step,
            val_loss=draw(losses),
            reason=draw(reasons),
            validation=draw(st.sampled_from(kinds)),
            epoch=draw(st.none() | st.integers(1, 9)),
            pinned=draw(st.integers(0, 9)) == 0,
        )
        for step in steps
    ]
    newest = max(manifests, key=lambda m: m.step, default=None)
    evaluated = {m.validation for m in manifests if m.val_loss is not None and isfinite(m.val_loss)}
    assume(newest is None or len(evaluated) < 2 or newest.validation in evaluated)
    return manifests
