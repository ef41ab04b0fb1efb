"""The Hugging Face hub: `hf:NAME[@REVISION]` becomes a folder of its cache on this disk, and a commit that never moves.

What downloads models and tokenizers, and only files that execute nothing: safetensors, JSON, vocabularies, templates. All goes through
huggingface_hub: its cache, its tokens, its environment (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE ...).
"""

import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from trainer.errors import HubError
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
from trainer.streams import say
from trainer.text import numbered, one_line, size

PREFIX = "hf:"
COMMIT = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset"]
Wanted = Literal["tokenizer", "config", "weights"]
"""How much of a repository: its tokenizer; what describes its model, besides; the model itself, besides."""

SMALL_FILES = (CONFIG, GENERATION_CONFIG, INDEX, *VOCABULARIES, *BESIDE_VOCABULARY, CHAT_TEMPLATES)
"""What describes a model and its tokenizer: a few MB at most, and nothing that is executed."""

_FORM = "hf:OWNER/NAME, or hf:OWNER/NAME@REVISION with a branch, a tag or a commit"
_DATASET_FORM = "hf:OWNER/NAME[:CONFIG][@SPLIT][#REVISION]"


@dataclass(frozen=True)
class Resolved:
    """A model or a tokenizer of the hub, on this disk."""

    path: Path
    """The folder of the cache that holds its files."""
    name: str
    """What the hub calls it, e.g. `HuggingFaceTB/SmolLM2-135M`."""
    revision: str
    """The commit: 40 hexadecimal digits."""

    @property
    def at_commit(self) -> str:
        """The name that means this commit at any time: `hf:NAME@COMMIT`."""
        return f"{PREFIX}{self.name}@{self.revision}"


class _Unreachable(Exception):
    """The hub was not asked (offline), or gave no answer: the cache may serve."""


def is_hub_name(text: str | None) -> bool:
    """Whether a setting names something of the hub."""
    return text is not None and text.startswith(PREFIX)


def split(text: str) -> tuple[str, str | None]:
    """`hf:NAME[@REVISION]` taken apart; HubError where it is not of this form."""
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = text.removeprefix(PREFIX).partition("@")
    with _in_words(text):
        validate_repo_id(name)
    if at and not revision:
        raise HubError(f"{text!r} ends where its revision should be; write {_FORM}")
    return name, revision or None


def names_commit(text: str) -> bool:
    """Whether a name's revision is a commit, which stays what it is."""
    return COMMIT.fullmatch(text.rpartition("@")[2]) is not None


def resolve(text: str, *, weights: bool = False) -> Resolved:
    """The files of `hf:NAME[@REVISION]`, downloaded where the cache has not got them. A commit that the cache holds asks no network.

    weights  whether a model is wanted, with its weights, and not the tokenizer alone
    raises   HubError when it cannot be had (unknown, gated, revision gone, no network, half a download), or would have to execute
             code of the hub (weights that are pickled, an architecture of its own)
    """
    return _resolve(text, "weights" if weights else "tokenizer")


def look_at_model(text: str) -> Resolved:
    """A model's small files alone, where `resolve` would not refuse the model for what is known before its weights are downloaded.

    raises  HubError as `resolve`
    """
    return _resolve(text, "config")


def _resolve(text: str, wanted: Wanted) -> Resolved:
    name, revision = split(text)
    if revision is not None and COMMIT.fullmatch(revision):
        folder, lacking = _in_cache(name, revision, wanted)
        if folder is not None and not lacking:
            return Resolved(_checked(folder, text, wanted), name, revision)
    try:
        commit_of(name, revision)
        with _in_words(text):
            folder = _download(text, name, revision, wanted)
    except _Unreachable as error:
        folder = _from_cache(text, name, revision, wanted, str(error))
    return Resolved(_checked(folder, text, wanted), name, folder.name)


def commit_of(name: str, revision: str | None, kind: Kind = "model") -> str:
    """The commit that a revision of a repository (None: its main branch) is now, by the hub's own answer; HubError as for `resolve`."""
    from huggingface_hub import HfApi

    with _in_words(f"{PREFIX}{name}{'' if revision is None else f'@{revision}'}", kind):
        commit = HfApi().repo_info(name, revision=revision, repo_type=kind).sha
    assert commit is not None
    return commit


def commit_of_dataset(name: str, revision: str | None) -> str:
    """The commit that a revision of a dataset (None: its main branch) is now, or was when the cache was last filled; HubError."""
    try:
        return commit_of(name, revision, "dataset")
    except _Unreachable as error:
        folder = _cached_folder(name, revision, "dataset")
        if folder is None:
            raise HubError(
                f"which commit dataset {name!r} is at cannot be found out: {error}. Start once with a network, name it (hf:{name}#COMMIT), or "
                f"give files: `hf download {name} --repo-type dataset --local-dir FOLDER` fills a folder where there is a network"
            ) from None
        say(f"dataset {name}: {error}; taken from the cache: commit {folder.name}")
        return folder.name


def weight_files(folder: Path) -> list[str]:
    """The names of the files of a folder's weights: those of its index, where it has one."""
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(
            f"{index} names no weights; an index with a weight_map was expected. Download it again, or take another revision"
        )
    return sorted({str(file) for file in weight_map.values()})


def _download(text: str, name: str, revision: str | None, wanted: Wanted) -> Path:
    """Brings what is missing into the cache, the small files first: they may say that the large ones are of no use."""
    folder = _fetch(name, revision, SMALL_FILES)
    if wanted == "tokenizer":
        return folder
    _refuse_remote_code(folder, text)
    files, tree = weight_files(folder), _tree(name, folder.name)
    if tree and (absent := [file for file in files if file not in tree]):
        raise HubError(_no_weights(text, name, absent, list(tree)))
    missing = [file for file in files if not (folder / file).exists()]
    if missing and wanted == "weights":
        total = sum(tree.get(file, 0) for file in missing)
        say(f"{text}: downloading {numbered(len(missing), 'file')} of weights, {size(total)}, into {folder}")
        _fetch(name, folder.name, files)
    return folder


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Downloads what the cache lacks of these, with a bar on a terminal; returns the folder of the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"disable": None, **options})  # None: drawn on a terminal alone

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), tqdm_class=Bar))


def _in_cache(name: str, revision: str | None, wanted: Wanted) -> tuple[Path | None, list[str]]:
    """The folder of the cache for a revision, None where there is none, and which files it lacks."""
    folder = _cached_folder(name, revision)
    if folder is None:
        return None, []
    files = [file for file in _tree(name, folder.name) if any(fnmatch(file, pattern) for pattern in SMALL_FILES)]
    if wanted != "tokenizer":
        files += ["config.json"]
    elif not any((folder / file).exists() for file in VOCABULARIES):
        files += ["tokenizer.json"]
    if wanted == "weights":
        files += weight_files(folder)
    return folder, [file for file in dict.fromkeys(files) if not (folder / file).exists()]


def _cached_folder(name: str, revision: str | None, kind: Kind = "model") -> Path | None:
    """The folder of the cache for a revision, with whatever is in it; None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=[], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _from_cache(text: str, name: str, revision: str | None, wanted: Wanted, reason: str) -> Path:
    """What the cache has where the hub gives no answer; HubError says what it lacks."""
    folder, lacking = _in_cache(name, revision, wanted)
    if folder is not None and not lacking:
        say(f"{text}: {reason}; taken from the cache: commit {folder.name}")
        return folder
    if folder is None:
        raise HubError(
            f"{text} is not in the cache of the hub ({_cache()}), and {reason}. Start once with a network, copy the cache of a machine "
            f"that has it (`hf download {name}` fills it), or give the path of a folder"
        )
    shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
    raise HubError(
        f"of {text} only a part is in the cache ({folder}): {shown} {'is' if len(lacking) == 1 else 'are'} missing, and {reason}. "
        "Start again with a network: a download goes on where it stopped"
    )


def _tree(name: str, commit: str) -> dict[str, int]:
    """Every file of a commit with its size, as the hub listed them when it was downloaded; empty where nobody kept the list."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(name, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return {}


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def _page(name: str, kind: Kind = "model") -> str:
    """The address of a repository, for a person."""
    from huggingface_hub.constants import ENDPOINT

    return f"{ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


def _checked(folder: Path, text: str, wanted: Wanted) -> Path:
    """A folder that holds what was asked for, and nothing of which would have to be executed."""
    if wanted != "tokenizer":
        if not (folder / "config.json").is_file():
            raise HubError(
                f"{text} has no config.json and so is no model of transformers; take a repository that has one ({folder})"
            )
        _refuse_remote_code(folder, text)
    elif not any((folder / file).is_file() for file in VOCABULARIES):
        raise HubError(
            f"{text} has no tokenizer: one of {', '.join(VOCABULARIES)} was expected; take a repository that has one"
        )
    return folder


def _refuse_remote_code(folder: Path, text: str) -> None:
    """HubError where a model is of an architecture that only Python code of its repository describes."""
    path = folder / "config.json"
    config = _read_json(path) if path.is_file() else {}
    code = config.get("auto_map")
    if not code:
        return
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if (
        model_type not in CONFIG_MAPPING
    ):  # where transformers or a plugin has the architecture, the repository's code is not needed
        raise HubError(
            f"{text} is of model_type {model_type!r}, which is described by code in its repository (auto_map: {', '.join(map(str, code))}), "
            "and what the hub delivers is never executed (trust_remote_code). Read that code, make a package of it that registers with "
            "AutoConfig and AutoModelForCausalLM, and name it: plugins: [my_package]; the guide hub shows how"
        )


def _no_weights(text: str, name: str, absent: Sequence[str], files: Sequence[str]) -> str:
    """Why there is nothing to load, and what to do about it."""
    pickled = [file for file in files if file.endswith(PICKLES) and "/" not in file]
    if pickled:
        convert = (
            f'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"M.from_pretrained('{name}').save_pretrained('FOLDER'); T.from_pretrained('{name}').save_pretrained('FOLDER')\""
        )
        return (
            f"the weights of {text} are pickled ({', '.join(pickled[:3])}), and unpickling can execute anything; safetensors were expected. "
            f"Where you trust its author, convert them once with `{convert}` and give that folder, or take a revision that has safetensors"
        )
    return f"{text} has no {', '.join(absent[:3])}: no weights as safetensors. Take another revision, or a repository that has them"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{path} cannot be read ({one_line(error)}); remove it, and it is downloaded again") from None
    if not isinstance(read, dict):
        raise HubError(
            f"{path} holds {type(read).__name__}, an object was expected; take another revision of the model"
        )
    return read


@contextmanager
def _in_words(text: str, kind: Kind = "model") -> Iterator[None]:
    """What the hub and the way to it raise, as HubError with the remedy, or as _Unreachable where the cache may serve."""
    from huggingface_hub import errors

    name, _, revision = text.removeprefix(PREFIX).partition("@")
    page = _page(name, kind)
    try:
        yield
    except errors.HFValidationError as error:
        form = _DATASET_FORM if kind == "dataset" else _FORM
        raise HubError(f"{text!r} does not name a repository of the hub ({one_line(error)}); write {form}") from None
    except errors.GatedRepoError:
        raise HubError(
            f"{text} is gated: its owner wants to be asked first. Accept the conditions on {page}, and log in on this machine "
            "with `hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"the hub has no {kind} {name!r}, or it is private. See {page}; for a private one log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{kind} {name!r} has no revision {revision!r}, or has it no more. See {page}/commits/main, and name another one, or none for the newest"
        ) from None
    except errors.DisabledRepoError:
        raise HubError(f"{kind} {name!r} has been disabled on the hub; see {page}, and take another one") from None
    except errors.OfflineModeIsEnabled:
        raise _Unreachable("no network is used (HF_HUB_OFFLINE)") from None
    except errors.LocalEntryNotFoundError as error:
        raise _Unreachable(f"the hub gives no answer ({one_line(error.__cause__ or error)})") from None
    except errors.HTTPError as error:  # what the hub answered, and what broke on the way to it
        raise _Unreachable(f"the hub gives no whole answer ({one_line(error)})") from None
    except OSError as error:
        remedy = (
            "free some space" if error.errno == errno.ENOSPC else "start again: a download goes on where it stopped"
        )
        raise HubError(f"{text} could not be downloaded into {_cache()} ({one_line(error)}); {remedy}") from None
