import json

import pytest

from tests.small_checkpoints import commit
from trainer.checkpoint.format.manifest import read_manifest
from trainer.checkpoint.format.verified import RECORD, found_damaged, last_verification, last_verifications, remember
from trainer.checkpoint.inspect.listing import listing, verification


@pytest.fixture
def verified(store):
    """A store of two checkpoints that were verified, with their manifests."""
    manifests = [read_manifest(commit(store, step)) for step in (1, 2)]
    for manifest in manifests:
        remember(store.folder, manifest, [])
    return store, manifests


def test_the_last_verification_of_each_is_remembered(verified):
    store, (first, second) = verified
    remember(store.folder, first, ["a is damaged"])
    known = last_verifications(store.folder)
    assert last_verification(first, known).problems == ("a is damaged",) and found_damaged(first, known)
    assert last_verification(second, known).problems == () and not found_damaged(second, known)
    assert 0 <= last_verification(second, known).age_seconds < 60


def test_a_folder_without_a_record_has_no_verifications(store):
    assert last_verifications(store.folder) == {} and not store.folder.exists()


LINE = {"step": 1, "digest": "0", "when": "2026-01-01T00:00:00+00:00", "problems": []}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[1]",
        b'"text"',
        b"{}",
        b"{",
        b"[" * 100_000,
        *(
            json.dumps({**LINE, **change}).encode()
            for change in (
                {"step": None},
                {"step": 1e999},
                {"digest": 3},
                {"digest": []},
                {"when": "yesterday"},
                {"when": 5},
                {"when": "2026-01-01"},
                {"problems": None},
                {"problems": "text"},
            )
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_left_out(verified, damage):
    store, manifests = verified
    content = (store.folder / RECORD).read_bytes()
    (store.folder / RECORD).write_bytes(damage + b"\n" + content + damage)
    known = last_verifications(store.folder)
    assert len(known) == 2 and all(last_verification(manifest, known) for manifest in manifests)
    assert listing(store.folder).count("whole, verified") == 2 and verification(store.folder)[1]


def test_a_record_cut_short_at_any_byte_breaks_nothing_and_can_be_added_to(verified):
    store, (first, second) = verified
    content = (store.folder / RECORD).read_bytes()
    for length in range(len(content)):
        (store.folder / RECORD).write_bytes(content[:length])
        remember(store.folder, second, [])
        assert last_verification(second, last_verifications(store.folder)) is not None


def test_a_record_that_is_a_folder_breaks_nothing(store):
    commit(store, 1)
    (store.folder / RECORD).mkdir()
    assert last_verifications(store.folder) == {} and "never verified" in listing(store.folder)
    text, all_sound = verification(store.folder)
    assert all_sound and "(not remembered: Is a directory)" in text
