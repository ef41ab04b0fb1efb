"""Models and tokenizers of the hub: what is downloaded, what the cache serves, and every way in which they cannot be had."""

import json

import pytest
from huggingface_hub import constants

from tests.hub_server import Repository
from tests.messages import form_faults, names, refuses
from trainer import hub
from trainer.errors import HubError

COMMIT, LATER = "a" * 40, "b" * 40
NAME = "someone/small"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
ASIDE = {
    "README.md": b"a card",
    "modeling_small.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickled",
    "original/consolidated.safetensors": b"twice",
}
MODEL = {**SMALL, **ASIDE, "model.safetensors": bytes(1000)}


def _names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_tokenizer_comes_without_weights_and_without_anything_that_could_be_executed(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL)
    resolved = hub.resolve(f"hf:{NAME}")
    assert (resolved.name, resolved.revision, resolved.at_commit) == (NAME, COMMIT, f"hf:{NAME}@{COMMIT}")
    assert _names(resolved.path) == set(SMALL)


def test_a_bar_is_drawn_on_a_terminal_alone(hub_server, capsys):
    hub_server.repositories[NAME] = Repository(MODEL)
    hub.resolve(f"hf:{NAME}", weights=True)
    said = capsys.readouterr().err
    assert "\r" not in said and names(said, f"hf:{NAME}", "1 file", "1 kB")


def test_a_model_comes_with_its_weights_and_with_no_other_form_of_them(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL)
    resolved = hub.resolve(f"hf:{NAME}", weights=True)
    assert _names(resolved.path) == {*SMALL, "model.safetensors"}
    assert (resolved.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_look_at_a_model_leaves_its_weights_where_they_are(hub_server, offline):
    hub_server.repositories[NAME] = Repository(MODEL)
    resolved = hub.look_at_model(f"hf:{NAME}")
    assert _names(resolved.path) == set(SMALL)
    offline()
    assert hub.look_at_model(f"hf:{NAME}") == resolved
    _refused(f"hf:{NAME}", "model.safetensors", "HF_HUB_OFFLINE")


def _sharded(shards=SHARDS, **more):
    index = {"weight_map": {f"layer.{number}": shard for number, shard in enumerate(SHARDS)}}
    return {**SMALL, hub.INDEX: json.dumps(index).encode(), **{shard: shard.encode() for shard in shards}, **more}


def test_of_sharded_weights_those_come_that_the_index_names(hub_server):
    hub_server.repositories[NAME] = Repository(_sharded(**{"model-00009-of-00009.safetensors": b"of another time"}))
    assert _names(hub.resolve(f"hf:{NAME}", weights=True).path) == {*SMALL, hub.INDEX, *SHARDS}


def test_what_the_cache_holds_of_a_commit_is_taken_without_a_word_to_the_hub(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL)
    first = hub.resolve(f"hf:{NAME}", weights=True)
    hub_server.requests.clear()
    assert hub.resolve(first.at_commit, weights=True) == first
    assert hub.names_commit(first.at_commit) and not hub.names_commit(f"hf:{NAME}@main")
    assert hub_server.requests == []


def test_a_branch_that_has_moved_is_followed_until_a_commit_is_named(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL)
    first = hub.resolve(f"hf:{NAME}@main")
    hub_server.repositories[NAME] = Repository(
        {**MODEL, "generation_config.json": b'{"a": 1}'}, {"main": LATER, "v1": COMMIT}
    )
    assert hub.resolve(f"hf:{NAME}@main").revision == LATER
    assert hub.resolve(f"hf:{NAME}@v1").revision == COMMIT
    assert hub.resolve(first.at_commit) == first


def test_a_request_with_a_slash_is_a_revision_too(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL, {"main": COMMIT, "refs/pr/1": LATER})
    assert hub.resolve(f"hf:{NAME}@refs/pr/1").revision == LATER


def test_without_a_network_the_cache_serves_and_that_is_said(hub_server, offline, capsys):
    hub_server.repositories[NAME] = Repository(MODEL)
    first = hub.resolve(f"hf:{NAME}", weights=True)
    offline()
    assert hub.resolve(f"hf:{NAME}", weights=True) == first
    assert names(capsys.readouterr().err, f"hf:{NAME}", COMMIT, "HF_HUB_OFFLINE")


def test_a_hub_that_does_not_answer_is_named_and_the_cache_serves(hub_server, monkeypatch, capsys):
    hub_server.repositories[NAME] = Repository(MODEL)
    first = hub.resolve(f"hf:{NAME}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.resolve(f"hf:{NAME}") == first
    assert names(capsys.readouterr().err, f"hf:{NAME}", COMMIT, "ConnectError")


def _refused(text, *tokens, weights=True):
    with refuses(HubError, *tokens) as caught:
        hub.resolve(text, weights=weights)
    assert not form_faults(str(caught.value))


@pytest.mark.parametrize("text", ["hf:", "hf:a/b/c", "hf:a/b@", "hf:../x", "hf:a b"])
def test_what_names_no_repository_is_refused(text):
    _refused(text, text, "hf:OWNER/NAME@REVISION")


def test_an_unknown_name_is_refused(hub_server):
    _refused(f"hf:{NAME}", NAME, f"{hub_server.url}/{NAME}", "hf auth login", "HF_TOKEN")


def test_a_gated_one_says_where_to_ask(hub_server):
    hub_server.repositories[NAME] = Repository(MODEL, is_gated=True)
    _refused(f"hf:{NAME}", "gated", f"{hub_server.url}/{NAME}", "hf auth login", "HF_TOKEN")


@pytest.mark.parametrize("revision", ["v9", "c" * 40])
def test_a_revision_that_is_gone_is_refused(hub_server, revision):
    hub_server.repositories[NAME] = Repository(MODEL)
    _refused(f"hf:{NAME}@{revision}", NAME, revision, f"{hub_server.url}/{NAME}/commits/main")


def test_offline_and_not_in_the_cache(hub_server, offline, tmp_path):
    offline()
    _refused(f"hf:{NAME}", f"hf:{NAME}", tmp_path / "cache", "HF_HUB_OFFLINE", f"hf download {NAME}")


def test_no_answer_and_not_in_the_cache(hub_server, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    _refused(f"hf:{NAME}", f"hf:{NAME}", tmp_path / "cache", "ConnectError", f"hf download {NAME}")


def test_half_a_download_is_finished_with_a_network_and_refused_without(hub_server, offline):
    hub_server.repositories[NAME] = Repository(_sharded())
    folder = hub.resolve(f"hf:{NAME}", weights=True).path
    (folder / SHARDS[1]).resolve().unlink()
    (folder / SHARDS[1]).unlink()
    hub_server.requests.clear()
    assert hub.resolve(f"hf:{NAME}@{COMMIT}", weights=True).path == folder
    assert hub_server.downloads() == [SHARDS[1]]
    (folder / SHARDS[1]).resolve().unlink()
    (folder / SHARDS[1]).unlink()
    offline()
    _refused(f"hf:{NAME}", SHARDS[1], folder, "HF_HUB_OFFLINE")
    assert hub.resolve(f"hf:{NAME}").path == folder, "of the tokenizer nothing is missing"


def test_a_tokenizer_file_that_the_hub_had_listed_is_missed_offline(hub_server, offline):
    hub_server.repositories[NAME] = Repository(MODEL)
    folder = hub.resolve(f"hf:{NAME}").path
    (folder / "chat_template.jinja").unlink()
    offline()
    _refused(f"hf:{NAME}", "chat_template.jinja", weights=False)


def test_a_download_that_breaks_off_says_how_it_goes_on(hub_server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub_server.repositories[NAME] = Repository(MODEL, breaks_off={"model.safetensors"})
    _refused(f"hf:{NAME}", f"hf:{NAME}", "model.safetensors", "Start again")


def test_pickled_weights_are_refused_with_the_command_that_converts(hub_server):
    files = {name: content for name, content in MODEL.items() if name != "model.safetensors"}
    hub_server.repositories[NAME] = Repository(files)
    _refused(f"hf:{NAME}", "pytorch_model.bin", f"M.from_pretrained('{NAME}').save_pretrained('FOLDER')")
    assert "pytorch_model.bin" not in hub_server.downloads()
    assert hub.resolve(f"hf:{NAME}").revision == COMMIT, "its tokenizer can be had"


def test_no_weights_at_all(hub_server):
    hub_server.repositories[NAME] = Repository(SMALL)
    _refused(f"hf:{NAME}", f"hf:{NAME}", "model.safetensors")


def test_a_shard_that_the_repository_lacks_is_named_before_anything_large_is_downloaded(hub_server):
    hub_server.repositories[NAME] = Repository(_sharded(shards=SHARDS[:1]))
    _refused(f"hf:{NAME}", SHARDS[1])
    assert SHARDS[0] not in hub_server.downloads()


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": {}}'])
def test_a_broken_index(hub_server, index):
    hub_server.repositories[NAME] = Repository({**MODEL, hub.INDEX: index})
    _refused(f"hf:{NAME}", hub.INDEX)


def test_code_of_the_hub_is_refused_before_the_weights_are_downloaded(hub_server):
    config = {"model_type": "their_own", "auto_map": {"AutoModelForCausalLM": "modeling_small.Small"}}
    hub_server.repositories[NAME] = Repository({**MODEL, "config.json": json.dumps(config).encode()})
    _refused(f"hf:{NAME}", "their_own", "auto_map", "trust_remote_code", "plugins: [my_package]")
    assert not {"model.safetensors", "modeling_small.py"} & set(hub_server.downloads())


def test_code_of_the_hub_is_not_needed_where_transformers_knows_the_architecture(hub_server):
    config = {"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "modeling_small.Small"}}
    hub_server.repositories[NAME] = Repository({**MODEL, "config.json": json.dumps(config).encode()})
    assert "modeling_small.py" not in _names(hub.resolve(f"hf:{NAME}", weights=True).path)


def test_no_model_and_no_tokenizer(hub_server):
    hub_server.repositories[NAME] = Repository({"README.md": b"", "generation_config.json": b"{}"})
    _refused(f"hf:{NAME}", "tokenizer.json", weights=False)
    hub_server.repositories[NAME] = Repository({"tokenizer.json": b"{}", "model.safetensors": b""}, {"main": LATER})
    _refused(f"hf:{NAME}", "config.json")


def test_a_full_disk_is_told(hub_server, monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    hub_server.repositories[NAME] = Repository(MODEL)
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    _refused(f"hf:{NAME}", f"hf:{NAME}", "No space left", "free")
