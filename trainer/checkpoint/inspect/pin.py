"""Pins: a mark in a manifest that keeps a checkpoint whatever the tiers say.

A pin may be set while a trainer runs and prunes. The manifest is replaced in one step under the checkpoint's name; pruning takes the name
away first and then looks for a pin. So either the pin came before and the checkpoint gets its name back, or it comes after, finds no
such folder, and says so.
"""

import time
from dataclasses import replace
from pathlib import Path

from trainer import files
from trainer.checkpoint.format.manifest import MANIFEST, to_json
from trainer.checkpoint.format.store import REMOVING, Entry, pin_of
from trainer.checkpoint.resume.lookup import one_of
from trainer.config.folders import command_line
from trainer.errors import CheckpointError

LONGEST_REMOVAL_SECONDS = 10.0
"""How long a prune that has taken a checkpoint's name is waited for, to remove it or to give the name back."""


def set_pinned(folder: Path, wanted: str, *, pinned: bool) -> str:
    """Pins the checkpoint that `wanted` names, or takes its pin away; says what is so now."""
    entry = one_of(folder, wanted)
    word = "pinned" if pinned else "not pinned"
    if entry.described().pinned == pinned:
        return f"{entry.path} is {word} already"
    if pinned and entry.problem:
        raise CheckpointError(
            f"{entry.path} is not whole ({entry.problem}), so a pin would keep nothing; pin another checkpoint, or restore this "
            "one from a copy"
        )
    _rewrite(entry, pinned)
    return f"{entry.path} is {word}"


def _rewrite(entry: Entry, pinned: bool) -> None:
    content = to_json(replace(entry.described(), pinned=pinned))
    try:
        # Partial beside the checkpoint: in it, it would be a file too many for whoever looks right now.
        files.write_atomic(entry.path / MANIFEST, content, partial_in=entry.path.parent)
    except FileNotFoundError:
        pass  # it lost its name before the new manifest was there, or just after: `_is_so` finds out
    except OSError as error:
        raise CheckpointError(
            f"the manifest of {entry.path} cannot be rewritten ({error}); fix that and try again"
        ) from None
    if not _is_so(entry.path, pinned):
        raise CheckpointError(
            f"{entry.path} was removed just now, by a trainer that prunes, and nothing was changed; see what is there with "
            f"`{command_line('checkpoints', 'ls', entry.path.parent.name)}`, and pin one that is kept"
        )


def _is_so(path: Path, pinned: bool) -> bool:
    """Whether the checkpoint has its new manifest; one that a prune has just taken the name from is waited for.

    What stands in a folder without its name proves nothing while that prune lives: the manifest may have come into it after it was looked
    into for a pin. One that died there gives the name back at the next start.
    """
    nameless = path.with_name(f"{REMOVING}{path.name}")
    ends = time.monotonic() + LONGEST_REMOVAL_SECONDS
    while (found := pin_of(path)) is None and nameless.exists() and time.monotonic() < ends:
        time.sleep(0.01)
    if found is None:  # it may have come back between the two looks
        found = pin_of(path)
    return (pin_of(nameless) if found is None else found) == pinned
