import tempfile
from pathlib import Path

import fsspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_checkpoints import commit
from trainer.checkpoint.format.store import CheckpointStore, verify
from trainer.checkpoint.format.verified_copy import Pace
from trainer.checkpoint.mirror.transfer import copy_checkpoint, fetch_checkpoint, look_at, too_many
from trainer.errors import CheckpointError

steps = st.lists(st.integers(1, 99), unique=True, min_size=1)


@given(steps, st.data(), st.integers(0, 5))
def test_no_more_are_kept_than_asked_for_and_the_one_just_copied_always(there, data, keep):
    newest = data.draw(st.sampled_from(there))
    gone = too_many(there, newest, keep)
    kept = set(there) - set(gone)
    assert newest in kept
    assert len(kept) == min(len(there), max(keep, 1))
    assert set(gone) <= set(there)
    older_kept = [step for step in kept if step < newest]
    assert all(step > newest or step < min(older_kept, default=100) for step in gone)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["memory", "path"]),
    st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 9)), max_size=8),
    st.integers(1, 3),
)
def test_whatever_copies_are_interrupted_what_is_listed_there_is_whole(kind, copies, keep):
    with tempfile.TemporaryDirectory() as folder:
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        where = "memory://place" if kind == "memory" else f"{folder}/place"
        for number, (step, blocks) in enumerate(copies):
            store = CheckpointStore(Path(folder) / f"run{number}")
            left = iter(range(99 if blocks is None else blocks))

            def next_block(left=left):
                next(left)  # StopIteration is an error like another one

            try:
                copy_checkpoint(
                    commit(store, step, loss=float(number)),
                    where,
                    keep=keep,
                    pace=Pace(None, between_blocks=next_block),
                )
            except CheckpointError:
                assert blocks is not None
            for manifest in look_at(where)[0]:
                back = Path(folder) / f"back{number}"
                assert verify(fetch_checkpoint(where, back, manifest.step)) == []
        memory.store.clear()
