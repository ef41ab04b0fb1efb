import json
import math
from dataclasses import replace

import pytest
import xxhash

from tests.messages import refuses
from tests.small_checkpoints import commit, manifest_of
from trainer.checkpoint.format.manifest import MANIFEST, _digest, describe_files, digest_file, read_manifest, to_json
from trainer.checkpoint.resume.select import resolve
from trainer.errors import CheckpointError


def write(folder, manifest):
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")


def test_a_manifest_reads_back_as_itself(tmp_path):
    manifest = manifest_of(
        7, files={"a": {"bytes": 3, "xxh3_128": "0"}}, val_loss=1.25, model={"vocab": [1, 2]}, identity={"seed": 1}
    )
    write(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest and manifest.num_bytes == 3


def test_a_state_with_numbers_for_keys_reads_back(tmp_path):
    write(tmp_path, manifest_of(7, state={"counts": {2: "two", 10: "ten"}, "pair": (1, 2)}))
    assert read_manifest(tmp_path).state == {"counts": {"2": "two", "10": "ten"}, "pair": [1, 2]}


def test_a_loss_that_is_no_number_is_not_written_as_one(tmp_path):
    write(tmp_path, manifest_of(7, loss=math.nan, val_loss=math.inf))
    json.loads((tmp_path / MANIFEST).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    manifest = read_manifest(tmp_path)
    assert manifest.loss is None and manifest.val_loss is None


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (None, None, None)),
        ({"val_loss": 3.0, "last_val_loss": 3.0, "last_val_step": 7}, (7, 3.0, "3.0000")),
        ({"last_val_loss": 3.5, "last_val_step": 4}, (4, 3.5, "3.5000 at 4")),
        ({"state": {"evaluation": {"last_step": 4, "last_loss": 3.5}}}, (4, 3.5, "3.5000 at 4")),
        ({"state": {"evaluation": {"last_step": 4, "last_loss": None}}}, (None, None, None)),
    ],
)
def test_the_last_validation_loss_is_stated_with_its_step_also_by_what_earlier_versions_wrote(
    tmp_path, facts, expected
):
    write(tmp_path, manifest_of(7, **facts))
    content = json.loads((tmp_path / MANIFEST).read_text())
    if "state" in facts:  # as earlier versions wrote it, without the two fields
        content = {
            key: value for key, value in content.items() if key not in ("digest", "last_val_loss", "last_val_step")
        }
        (tmp_path / MANIFEST).write_text(json.dumps({**content, "digest": _digest(content)}))
    manifest = read_manifest(tmp_path)
    assert (manifest.last_val_step, manifest.last_val_loss, manifest.val_loss_words) == expected


def test_a_file_is_described_by_its_size_and_digest(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"abc")
    (tmp_path / MANIFEST).write_text("{}")
    digest = xxhash.xxh3_128_hexdigest(b"abc")
    assert describe_files(tmp_path) == {"inner/a": {"bytes": 3, "xxh3_128": digest}}
    assert digest_file(tmp_path / "inner" / "a") == digest


def test_a_folder_without_a_manifest_was_never_committed(tmp_path):
    with refuses(CheckpointError, str(tmp_path), "manifest.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[1]", b"{}", b'{"step": 1, "digest": "0"}'])
def test_a_damaged_manifest_is_not_believed(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with refuses(CheckpointError, str(tmp_path / "manifest.json"), "damaged"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_folder_is_not_believed(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with refuses(CheckpointError, str(tmp_path / "manifest.json")):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_names_both(tmp_path):
    write(tmp_path, replace(manifest_of(7), format=2))
    with refuses(CheckpointError, "format 2", "format 1"):
        read_manifest(tmp_path)


def test_a_fact_that_a_later_version_added_is_left_out(tmp_path):
    content = json.loads(to_json(manifest_of(7)))
    del content["digest"]
    content["later"] = 1
    content["digest"] = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(tmp_path) == manifest_of(7)


def test_a_manifest_from_before_epochs_and_pins_reads_as_one_without(tmp_path):
    content = {
        key: value
        for key, value in json.loads(to_json(manifest_of(7))).items()
        if key not in ("digest", "epoch", "pinned")
    }
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    (tmp_path / MANIFEST).write_text(json.dumps({**content, "digest": digest}))
    manifest = read_manifest(tmp_path)
    assert manifest == manifest_of(7) and manifest.epoch is None and manifest.pinned is False


def test_the_digest_of_the_content_is_of_the_files_and_no_pin_changes_it():
    manifest = manifest_of(7, files={"a": {"bytes": 3, "xxh3_128": "0"}})
    assert replace(manifest, pinned=True).content_digest == manifest.content_digest
    assert replace(manifest, files={"a": {"bytes": 3, "xxh3_128": "1"}}).content_digest != manifest.content_digest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequences", None),
        ("step", "300"),
        ("tokens", 1.5),
        ("loss", "x"),
        ("val_loss", True),
        ("epoch", "1"),
        ("created", "yesterday"),
        ("files", None),
        ("files", [1]),
        ("files", {"a": 1}),
        ("files", {"a": {"bytes": "1", "xxh3_128": ""}}),
        ("state", [1]),
        ("state", {"guard": None}),
        ("identity", 3),
    ],
)
def test_a_manifest_of_another_form_is_damaged_and_in_nobodys_way(store, key, value):
    for step in (5, 10):
        commit(store, step, val_loss=float(step))
    content = json.loads((store.path(10) / "manifest.json").read_text())
    del content["digest"]
    content[key] = value
    (store.path(10) / "manifest.json").write_text(json.dumps({**content, "digest": _digest(content)}))
    with refuses(CheckpointError, "step-00000010/manifest.json", key):
        read_manifest(store.path(10))
    assert resolve(store, "latest").path == resolve(store, "best").path == store.path(5)
