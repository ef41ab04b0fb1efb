"""Small tokenizers of every kind, trained from the embedded plays: folders as save_pretrained writes them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.data.assets import embedded_documents

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END = "<|endoftext|>"


def _byte_level(*, split: str | None, nfc: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = (
        level if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (END, "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def _byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, show_progress=False)
    )
    # Those that stand for bytes are tokens of the vocabulary only.
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = written["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    settings = trainers.UnigramTrainer(
        vocab_size=1000, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts(), settings)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts(), trainers.WordPieceTrainer(vocab_size=1200, special_tokens=specials, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


_CHAT = {"eos_token": "<|im_end|>", "pad_token": END, "chat_template": "{{ messages[0]['content'] }}"}
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, str | None]]] = {
    "byte-level": (functools.partial(_byte_level, split=None, nfc=False), {"bos_token": END, "eos_token": END}),
    "byte-level-nfc": (functools.partial(_byte_level, split=None, nfc=True), _CHAT),
    "byte-level-split": (functools.partial(_byte_level, split=LLAMA3, nfc=False), _CHAT),
    "byte-level-split-nfc": (functools.partial(_byte_level, split=LLAMA3, nfc=True), _CHAT),
    "byte-fallback": (_byte_fallback, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "unigram": (_unigram, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
    "word-piece": (
        _word_piece,
        {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
    ),
}
"""How each is made, and what its tokenizer_config.json says."""


def write(kind: str, folder: Path) -> Path:
    """Writes the tokenizer of a kind into a new folder, which is returned."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(_trained(kind), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024, **KINDS[kind][1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


@functools.cache
def _trained(kind: str) -> str:
    return KINDS[kind][0]().to_str(pretty=True)


def texts() -> list[str]:
    """What they are trained from."""
    return [text[:60_000] for text in [*embedded_documents("shakespeare", "train")][:2]]
