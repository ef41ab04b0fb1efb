"""Datasets of the hub: the commit that a name means is found once, stands in the manifest, and is the text for good."""

import datasets
import pytest

from tests.hub_server import Repository
from tests.messages import form_faults, names, refuses
from trainer.data import hub_datasets
from trainer.data.hub_datasets import HubDataset, at_commit, dataset_of
from trainer.data.manifest import read_manifest
from trainer.data.prepare import prepare
from trainer.errors import HubError

COMMIT, LATER = "a" * 40, "b" * 40
SET = "hf:some/set"


@pytest.fixture
def data(hub_server):
    """A dataset of a hundred documents on a hub, and what moves it on."""
    lines = "".join(f'{{"text": "document {number} of the hub"}}\n' for number in range(100))
    repository = Repository({"train.jsonl": lines.encode(), "README.md": b""}, kind="dataset")
    hub_server.repositories["some/set"] = repository

    def move():
        repository.refs = {"main": LATER, "v1": COMMIT}
        hub_datasets._commit.cache_clear()
        hub_server.requests.clear()

    return move


@pytest.fixture
def rows(monkeypatch):
    """Reads what `datasets` would stream; gives what it was asked for."""
    asked = []

    def load_dataset(name, config, *, split, revision, streaming):
        asked.append((name, config, split, revision))
        return [{"text": f"document {number} of the hub"} for number in range(100)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:a/b", ("a/b", None, None, None)),
        ("hf:b:part@test#v1", ("b", "part", "test", "v1")),
        ("hf:a/b#refs/convert/parquet", ("a/b", None, None, "refs/convert/parquet")),
    ],
)
def test_a_name_is_taken_apart_and_put_together(text, parts):
    assert dataset_of(text) == HubDataset(*parts)
    assert dataset_of(text).text == text


def test_a_name_gets_the_commit_that_it_is_at(data, hub_server, capsys):
    assert at_commit(f"{SET}:part@test") == f"{SET}:part@test#{COMMIT}"
    assert names(capsys.readouterr().err, f"{SET}:part@test#{COMMIT}")
    asked = len(hub_server.requests)
    assert at_commit(SET) == f"{SET}#{COMMIT}"
    assert at_commit(f"{SET}#{LATER}") == f"{SET}#{LATER}"
    assert at_commit("corpus/*.txt") == "corpus/*.txt"
    assert len(hub_server.requests) == asked, "the splits of a dataset are of one commit; what is one asks nobody"


def test_a_prepared_folder_says_the_commit_and_is_found_again_without_a_network(
    data, rows, hub_server, tmp_path, offline
):
    prepare([SET], tmp_path / "out", "bytes", validation_sources=[f"{SET}@test"])
    assert rows == [("some/set", None, "train", COMMIT), ("some/set", None, "test", COMMIT)]
    request = read_manifest(tmp_path / "out")["request"]
    assert request["sources"] == [[f"{SET}#{COMMIT}"]] and request["validation_sources"] == [[f"{SET}@test#{COMMIT}"]]
    data()
    offline()
    assert prepare([SET], tmp_path / "out", "bytes", validation_sources=[f"{SET}@test"]).reused
    assert prepare([f"{SET}#{COMMIT}"], tmp_path / "out", "bytes", validation_sources=[f"{SET}@test"]).reused
    assert hub_server.requests == []


def test_a_folder_of_an_earlier_version_that_names_no_commit_is_found_again(data, rows, tmp_path, hub_server):
    prepare([SET], tmp_path / "out", "bytes")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f"{SET}#{COMMIT}", SET))
    data()
    assert prepare([SET], tmp_path / "out", "bytes").reused
    assert hub_server.requests == []


def test_a_folder_of_the_same_name_is_no_dataset_of_the_hub(data):
    assert at_commit(SET, ["some/set"]) == f"{SET}#{COMMIT}"


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ("hf:no/such", ("no/such", "datasets/no/such", "HF_TOKEN")),
        (f"{SET}#v9", ("some/set", "v9", "datasets/some/set/commits/main")),
        ("hf:", ("hf:", "hf:OWNER/NAME[:CONFIG][@SPLIT][#REVISION]")),
    ],
)
def test_what_the_hub_has_not_got_is_refused(data, source, tokens, tmp_path):
    with refuses(HubError, *tokens) as caught:
        prepare([source], tmp_path / "out", "bytes")
    assert not form_faults(str(caught.value)) and not (tmp_path / "out").exists()


def test_without_a_network_and_without_a_commit_it_says_how_to_bring_the_files(data, offline, tmp_path):
    offline()
    with refuses(HubError, "some/set", "HF_HUB_OFFLINE", "hf download some/set --repo-type dataset") as caught:
        prepare([SET], tmp_path / "out", "bytes")
    assert not form_faults(str(caught.value))


def test_rows_are_streamed_from_the_commit(data, hub_server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_server.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    report = prepare([SET], tmp_path / "out", "bytes", validation_fraction=0.1)
    assert report.train_documents + report.validation_documents >= 100
    assert [request for request in hub_server.requests if request.endswith("/train.jsonl") and COMMIT in request]
