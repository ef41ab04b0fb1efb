"""Whether the data were made with the tokenizer that a model was trained with, found by giving both the same texts."""

from dataclasses import dataclass
from typing import Literal

from trainer.checkpoint.format.carried import tokenizer_name
from trainer.checkpoint.format.manifest import read_manifest
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.errors import TrainerError
from trainer.pretrained import Source, tokenizer_files

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1984 it cost $3,141.59, or 271 828 182 845 roubles.",
    "for i in range(10):\n    print(i ** 2)  # squares\n",
    "\u00c7a co\u00fbte d\u00e9j\u00e0 tr\u00e8s cher, dit le gar\u00e7on \u00e0 Zo\u00eb.",
    "Die gr\u00f6\u00dften B\u00e4ren fra\u00dfen s\u00fc\u00dfe \u00c4pfel.",
    "\u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a.",
    "\u039e\u03b5\u03c3\u03ba\u03b5\u03c0\u03ac\u03b6\u03c9 \u03c4\u03b7\u03bd \u03c8\u03c5\u03c7\u03bf\u03c6\u03b8\u03cc\u03c1\u03b1 \u03b2\u03b4\u03b5\u03bb\u03c5\u03b3\u03bc\u03af\u03b1.",
    "\u654f\u6377\u7684\u68d5\u8272\u72d0\u72f8\u8df3\u8fc7\u61d2\u72d7\u3002",
    "\u3044\u308d\u306f\u306b\u307b\u3078\u3068 \u3061\u308a\u306c\u308b\u3092",
    "\ud0a4\uc2a4\uc758 \uace0\uc720\uc870\uac74\uc740 \uc785\uc220\ub07c\ub9ac \ub9cc\ub098\uc57c \ud558\uace0",
    "\u05e0\u05e9\u05de\u05d4 \u05d8\u05d5\u05d1\u05d4 \u05e9\u05de\u05e8\u05d4 \u05e2\u05dc \u05e2\u05e5 \u05d1\u05d5\u05d3\u05d3",
    "\u0646\u0635 \u062d\u0643\u064a\u0645 \u0644\u0647 \u0633\u0631 \u0642\u0627\u0637\u0639 \u0648\u0630\u0648 \u0634\u0623\u0646 \u0639\u0638\u064a\u0645",
    "\u090b\u0937\u093f\u092f\u094b\u0902 \u0915\u094b \u0938\u0924\u093e\u0928\u0947 \u0935\u093e\u0932\u0947 \u0926\u0941\u0937\u094d\u091f \u0930\u093e\u0915\u094d\u0937\u0938\u094b\u0902",
    "Tabs\tand  double  spaces   and\r\nlines \U0001f600\u200d\U0001f680.",
)
"""Texts in twelve scripts: two tokenizers that give all of them the same ids are one."""


@dataclass(frozen=True)
class Likeness:
    """How like the tokenizer of the data is to the model's own."""

    kind: Literal["own", "another", "unknown"]
    words: str | None = None
    """What a person should know of it, as a sentence; None where it is the model's own."""

    is_warning: bool = False


def likeness(source: Source, tokenizer: Tokenizer | None) -> Likeness:
    """Compares the tokenizer of the data (None: shards of ids alone) with that of a model."""
    try:
        own = _own(source)
    except (TrainerError, OSError) as error:
        words = f"the model's own tokenizer cannot be opened to be compared with that of the data: {error}"
        return Likeness("unknown", words, is_warning=True)
    if own is None:
        return Likeness(
            "unknown", f"{source.name} has no tokenizer, so whether the data were made with the model's is not known"
        )
    if tokenizer is None:
        return Likeness(
            "unknown",
            "data.vocab_size names no tokenizer, so whether the shards were made with the model's is not known",
        )
    if own.sha256 == tokenizer.sha256:
        return Likeness("own")
    equal = sum(own.encode(text) == tokenizer.encode(text) for text in PROBES)
    if equal == len(PROBES):
        return Likeness("own")
    return Likeness(
        "another",
        f"the tokenizer of the data, {tokenizer.name} ({tokenizer.vocab_size:,} ids), is not the model's own ({own.vocab_size:,} ids): of "
        f"{len(PROBES)} texts in twelve scripts {equal} get the same ids. The model has learnt other meanings of most ids and begins almost anew; "
        f"prepare the text with the model's tokenizer ({source.folder}), unless this is meant",
        is_warning=True,
    )


def _own(source: Source) -> Tokenizer | None:
    """The tokenizer of a model; None where it has none."""
    if source.is_checkpoint:
        name = tokenizer_name(source.folder, read_manifest(source.folder))
    else:
        name = str(source.folder) if tokenizer_files(source.folder) else None
    return load_tokenizer(name) if name else None
