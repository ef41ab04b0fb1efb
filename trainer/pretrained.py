"""A folder that `save_pretrained` of transformers wrote, looked at without torch: what a run may begin from, and which files an export hands on."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.model_files import (
    BESIDE_VOCABULARY,
    CHAT_TEMPLATES,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    PICKLES,
    VOCABULARIES,
    WEIGHTS,
)
from trainer.safetensors_header import header_of
from trainer.text import numbered

_FLOATS = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' name of a type -> torch's name of the one that an export stores it in."""
_WHOLE = {"BOOL", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64"}
"""Types that are no floats: buffers, such as the masks of older layouts."""


@dataclass(frozen=True)
class Source:
    """Weights that a run may begin from, and what belongs to them."""

    name: str
    """As model.init_from means it: a folder, `hf:NAME@COMMIT`, or `run:NAME@STEP`."""
    folder: Path
    fields: Mapping[str, Any]
    """Of the transformers config, `model_type` among them."""
    dtype: str = "float32"
    """What most of its numbers are stored in, as torch calls it."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """The tensors that are stored in another one, by their names in the files."""
    revision: str | None = None
    """The commit, of a model of the hub."""
    narrowed: int = 0
    """How many tensors are stored in fp64, and are read and exported as fp32."""
    vocab_size: int | None = None
    """Real ids of a checkpoint of this trainer, whose padding has rows too; None: every row is an id."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of this trainer, whose tensors have the names that they have in memory."""
        return self.vocab_size is not None


def open_source(folder: Path, name: str, revision: str | None = None) -> Source:
    """The model in a folder. Headers are read and no tensor is; raises ConfigError with what is wrong and what to do."""
    _check_folder(folder, name)
    fields = read_config(folder, name)
    if quantised := fields.get("quantization_config"):
        method = quantised.get("quant_method", "some method") if isinstance(quantised, dict) else quantised
        raise ConfigError(
            f"model.init_from {name}: the weights are quantised ({method}), and numbers of so few bits cannot be trained; take the model "
            "that they were made from, in bf16, fp16 or fp32"
        )
    kinds = _kinds_of_tensors([folder / file for file in _weight_files(folder, name)], name)
    bits = {kind for kind, _ in kinds.values()} - _FLOATS.keys() - _WHOLE
    if bits:
        tensor = next(key for key, (kind, _) in kinds.items() if kind in bits)
        raise ConfigError(
            f"model.init_from {name}: {tensor} is stored in {', '.join(sorted(bits))}: the weights are quantised, and numbers of so few bits "
            "cannot be trained; take the model in bf16, fp16 or fp32"
        )
    sizes: Counter[str] = Counter()
    for kind, numel in kinds.values():
        if kind in _FLOATS:
            sizes[_FLOATS[kind]] += numel
    if not sizes:
        raise ConfigError(f"model.init_from {name}: {folder} holds no weights; give the folder of a whole model")
    dtype = max(sizes, key=lambda kind: sizes[kind])
    others = {key: _FLOATS[kind] for key, (kind, _) in kinds.items() if kind in _FLOATS and _FLOATS[kind] != dtype}
    narrowed = sum(kind == "F64" for kind, _ in kinds.values())
    return Source(name, folder, fields, dtype, others, revision, narrowed)


def handed_on(folder: Path) -> list[str]:
    """The files of a model's folder that its export hands on as they are, but for config.json: by their paths in it."""
    return [file for file in (GENERATION_CONFIG,) if (folder / file).is_file()] + tokenizer_files(folder)


def tokenizer_files(folder: Path) -> list[str]:
    """The files of the tokenizer in a folder, its chat templates included, by their paths in it."""
    templates = sorted(path.relative_to(folder).as_posix() for path in folder.glob(CHAT_TEMPLATES))
    return [file for file in (*VOCABULARIES, *BESIDE_VOCABULARY) if (folder / file).is_file()] + templates


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The fields of config.json. raises ConfigError"""
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.init_from {name}: {path} cannot be read ({error}); {_remedy(path)}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ConfigError(
            f"model.init_from {name}: {path} names no model_type, so it is not the config of a model of transformers; give the folder that "
            "save_pretrained wrote"
        )
    return fields


def _check_folder(folder: Path, name: str) -> None:
    """Refuses what is not the folder of a model."""
    if not folder.exists():
        raise ConfigError(
            f"model.init_from {name}: there is no folder {folder}; give the folder of a model, hf:NAME of the hub, or run:NAME of a run"
        )
    if not folder.is_dir():
        raise ConfigError(
            f"model.init_from {name}: {folder} is a file; give the folder of a model, with its config.json and safetensors"
        )
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"model.init_from {name}: {folder} holds an adapter (adapter_config.json), which is not a whole model; merge it into its base "
            "model first (merge_and_unload of peft) and give that folder"
        )
    if not (folder / CONFIG).is_file():
        steps = sorted(path.name for path in folder.glob("step-*"))
        gguf = sorted(path.name for path in folder.glob("*.gguf"))
        hint = (
            f"it holds checkpoints of a run: give one of them, e.g. {folder / steps[-1]}, or run:NAME"
            if steps
            else f"{gguf[0]} is a GGUF file: take the model as safetensors"
            if gguf
            else "give the folder that save_pretrained wrote, hf:NAME of the hub, or run:NAME of a run"
        )
        raise ConfigError(f"model.init_from {name}: {folder} has no config.json; {hint}")


def _weight_files(folder: Path, name: str) -> list[str]:
    """The files of the weights by name: the one, or those of the index. raises ConfigError where some are not there"""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ConfigError(_no_weights(folder, name))
    path = folder / INDEX
    try:
        files = sorted({str(file) for file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model.init_from {name}: {path} names no weights ({type(error).__name__}: {error}); a weight_map was expected: {_remedy(path)}"
        ) from None
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ConfigError(
            f"model.init_from {name}: of the {numbered(len(files), 'file')} of weights that {INDEX} names, {shown or 'all'} "
            f"{'is' if len(missing) == 1 else 'are'} missing in {folder}; copy or download the whole model again"
        )
    return files


def _no_weights(folder: Path, name: str) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(PICKLES))
    if not pickled:
        there = sorted(path.name for path in folder.glob("*.safetensors"))
        others = f" ({', '.join(there[:3])} is no name that transformers gives)" if there else ""
        return f"model.init_from {name}: {folder} has neither {WEIGHTS} nor {INDEX}{others}; copy or download the whole model"
    convert = (
        f'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained('{folder}').save_pretrained('FOLDER'); T.from_pretrained('{folder}').save_pretrained('FOLDER')\""
    )
    return (
        f"model.init_from {name}: the weights in {folder} are pickled ({', '.join(pickled[:3])}), and unpickling can execute anything; "
        f"safetensors were expected. Where you trust their author, convert them once with `{convert}` and give that folder"
    )


def _kinds_of_tensors(paths: list[Path], name: str) -> dict[str, tuple[str, int]]:
    """Type and number of elements of every tensor, by its name. raises ConfigError for a file that is not whole"""
    found: dict[str, tuple[str, int]] = {}
    for path in paths:
        try:
            header = header_of(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.init_from {name}: {error}; {_remedy(path)}") from None
        for key, facts in header.items():
            numel = 1
            for length in facts["shape"]:
                numel *= length
            found[key] = (facts["dtype"], numel)
    return found


def _remedy(path: Path) -> str:
    """What to do about a file that is not what it should be."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(40).startswith(b"version https://git-lfs")
    except OSError:
        is_pointer = False
    if is_pointer:
        return "it is a pointer of Git LFS and not the file itself: run `git lfs pull` in that folder"
    return "copy or download the file again"
