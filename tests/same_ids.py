"""Whether a Hugging Face tokenizer opened by this trainer gives the ids that AutoTokenizer gives: for the tests, and by hand for real ones.

python -m tests.same_ids FOLDER... [--strings 2000]
"""

import argparse
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np

from trainer.data.tokenizer import load_tokenizer, well_formed

WORDS = [
    "The",
    "quick",
    "brown",
    "fox",
    "doesn't",
    "jump",
    "they'VE",
    "it'll",
    "3.14159",
    "1,234,567",
    "x2",
    "snake_case",
    "camelCase",
    "HTTPServer",
    "ſ's",
    "K's",
    "e.g.",
    "naïve",
    "café",
    "straße",
    "ﬁne",
    "ελλάδα",
    "привет",
    "שלום",
    "مرحبا",
    "हिन्दी",
    "ไทย",
    "你好世界",
    "こんにちは",
    "한국어",
    "한",
    "👨\u200d👩\u200d👧",
    "🇩🇪",
    "👍🏽",
    "❤️",
    "١٢٣",
    "½",
    "Ⅸ",
    "q̣̇",
    "ạ́",
    "ó̧",
    "{'a':",
    "[1]}",
    "//x!=",
    '"q"',
    "(a)!",
    "...",
    "---",
    "/*",
    "a.\n/b",
]
SPACES = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "\n ",
    "\t\t ",
    "\u00a0",
    "\u3000",
    "\u2003 ",
    "\u2028",
    "\x85",
    "\x0b\x0c",
    "",
    "",
    "",
]
ODD = [
    "\x00",
    "\x1b",
    "\x1c",
    "\x7f",
    "\u200b",
    "\u200d",
    "\u202e",
    "\ufeff",
    "\u00ad",
    "\ufffd",
    "\ue000",
    "\U0010ffff",
    "\ud800",
    "a" * 130,
    " " * 90,
    "=" * 70,
]
SPECIALS = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<pad>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    "<tool_call>",
    "</think>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<unused7>",
    "<|return|>",
    "<0x0A>",
    "\u2581",
    "##ing",
]


def strings(number: int, seed: int = 0) -> list[str]:
    """Strings of words in many scripts, spaces, newlines, emoji, combining marks, control characters and specials spelt out."""
    random = np.random.default_rng(seed)
    assigned = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    anything = [*map(chr, (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000))]
    usual = [WORDS, WORDS, WORDS, SPACES, SPACES, ODD, SPECIALS, assigned, assigned]
    found = []
    for _ in range(number):
        kinds = usual if random.integers(4) else [*usual, anything]
        chosen = random.integers(0, len(kinds), random.integers(1, 20))
        parts = [kinds[kind][random.integers(len(kinds[kind]))] for kind in chosen]
        found.append((" " if random.integers(2) else "").join(parts))
    return found


def different(folder: Path, texts: list[str]) -> list[str]:
    """The texts to which the trainer gives other ids than AutoTokenizer, alone or in a batch."""
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained(str(folder), split_special_tokens=True)
    opened = load_tokenizer(str(folder))
    found = []
    for start in range(0, len(texts), 100):
        batch = texts[start : start + 100]
        for text, together in zip(batch, opened.encode_batch(batch), strict=True):
            # UTF-8 cannot write lone surrogates: what AutoTokenizer is given has U+FFFD there, as the trainer puts it.
            sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            expected = original(sound, add_special_tokens=False)["input_ids"]
            if not together.tolist() == opened.encode(text) == expected:
                found.append(text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--strings", type=int, default=2000)
    arguments = parser.parse_args()
    texts = strings(arguments.strings)
    for folder in arguments.folders:
        started = time.monotonic()
        wrong, opened = different(folder, texts), load_tokenizer(str(folder))
        bridged = 0 if isinstance(opened.bridge, str) else sum(map(opened.bridge.takes, map(well_formed, texts)))
        print(
            f"{folder}: {opened.vocab_size:,} ids; {opened.way}; {len(texts) - len(wrong):,} of {len(texts):,} strings equal "
            f"({bridged:,} by tiktoken), {time.monotonic() - started:.0f} s"
        )
        for text in wrong[:3]:
            print(f"    {text!r}")


if __name__ == "__main__":
    main()
