"""Which commit a run's names of the hub mean: found once, kept for the life of the run, and given to its processes."""

import pytest
import yaml

from tests.commands import paragraph, trainer
from tests.hub_server import Repository
from tests.messages import says
from tests.unit.test_hub import COMMIT, LATER, MODEL, NAME
from trainer import hub_settings, launcher
from trainer.config.load import dump, flatten, load
from trainer.hub_settings import download_weights, settings_of_hub, write_down
from trainer.journal import read_events

TOKENIZER = f"data.tokenizer=hf:{NAME}"


@pytest.fixture
def moved(hub_server):
    """A hub whose repository has been committed to again since; asked for a second time, this process would notice."""
    hub_server.repositories[NAME] = Repository(MODEL)

    def move():
        hub_server.repositories[NAME].refs = {"main": LATER, "v1": COMMIT}
        hub_settings._at_commit.cache_clear()
        hub_server.requests.clear()

    return move


def _config(*words):
    return load("shakespeare", words).config


def _launched(project, *words, checkpoint=False):
    """A launch of the run, which has written down what a launch writes."""
    (found,) = settings_of_hub(_config(*words))
    folder = project / "runs" / "shakespeare"
    write_down([found], folder)
    config = _config(*words, found.override)
    for place in (folder, project / "checkpoints" / "shakespeare" / "step-00000005")[: 1 + checkpoint]:
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.yaml").write_text(dump(config))
    return found


def test_a_name_gets_the_commit_that_it_is_at_and_that_is_told_and_written_down(moved, project):
    found = _launched(project, TOKENIZER)
    assert (found.setting, found.given, found.is_kept) == ("data.tokenizer", f"hf:{NAME}", False)
    assert found.override == f"data.tokenizer=hf:{NAME}@{COMMIT}"
    says(found.words, "data.tokenizer", f"hf:{NAME}@{COMMIT}")
    (event,) = read_events(project / "runs" / "shakespeare", "hub")
    assert (event["setting"], event["given"], event["at_commit"]) == (found.setting, found.given, found.at_commit)


def test_the_next_launch_means_the_same_commit_and_asks_nobody(moved, project, hub_server):
    first = _launched(project, TOKENIZER)
    moved()
    (again,) = settings_of_hub(_config(TOKENIZER))
    assert (again.at_commit, again.is_kept, hub_server.requests) == (first.at_commit, True, [])
    write_down([again], project / "runs" / "shakespeare")
    assert len(read_events(project / "runs" / "shakespeare", "hub")) == 1


def test_a_branch_is_kept_too_and_another_one_is_looked_up(moved, project):
    _launched(project, f"{TOKENIZER}@main")
    moved()
    assert settings_of_hub(_config(f"{TOKENIZER}@main"))[0].at_commit.endswith(COMMIT)
    (other,) = settings_of_hub(_config(f"{TOKENIZER}@v1"))
    assert (other.at_commit, other.is_kept) == (f"hf:{NAME}@{COMMIT}", False)


def test_a_commit_that_was_written_by_hand_is_no_news(moved, project):
    found = _launched(project, f"{TOKENIZER}@{COMMIT}")
    assert (found.words, found.at_commit) == (None, found.given)
    assert read_events(project / "runs" / "shakespeare", "hub") == []


def test_where_the_runs_own_folder_is_lost_its_checkpoint_tells(moved, project, hub_server):
    _launched(project, TOKENIZER, checkpoint=True)
    for path in (project / "runs" / "shakespeare").iterdir():
        path.unlink()
    moved()
    (found,) = settings_of_hub(_config(TOKENIZER))
    assert (found.at_commit, hub_server.requests) == (f"hf:{NAME}@{COMMIT}", [])


def test_a_start_over_on_purpose_looks_it_up_anew(moved, project):
    _launched(project, TOKENIZER, checkpoint=True)
    moved()
    assert settings_of_hub(_config(TOKENIZER, "resume_from_checkpoint=none"))[0].at_commit.endswith(LATER)


def test_several_launches_of_one_command_mean_the_same(moved, hub_server, project):
    settings_of_hub(_config(TOKENIZER))
    hub_server.requests.clear()
    settings_of_hub(_config(TOKENIZER, "name=other"))
    assert hub_server.requests == []


def test_a_run_without_names_of_the_hub_asks_nobody(hub_server, project):
    assert settings_of_hub(_config()) == ()
    assert hub_server.requests == []


def _begun_from(monkeypatch, name):
    monkeypatch.setattr(hub_settings, "flatten", lambda config: {**flatten(config), "model.init_from": name})


def test_the_weights_come_once_everything_else_is_known_to_be_right(moved, project, hub_server, monkeypatch):
    _begun_from(monkeypatch, f"hf:{NAME}")
    found = settings_of_hub(_config())
    assert "model.safetensors" not in hub_server.downloads()
    download_weights(found, _config())
    assert hub_server.downloads().count("model.safetensors") == 1


def test_a_run_that_goes_on_from_a_checkpoint_needs_its_source_no_more(moved, project, hub_server, monkeypatch):
    _begun_from(monkeypatch, f"hf:{NAME}")
    checkpoint = project / "checkpoints" / "shakespeare" / "step-00000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text(yaml.safe_dump({"model": {"init_from": f"hf:{NAME}@{COMMIT}"}}))
    del hub_server.repositories[NAME]
    found = settings_of_hub(_config())
    download_weights(found, _config())
    assert [each.at_commit for each in found] == [f"hf:{NAME}@{COMMIT}"]
    assert hub_server.requests == []


def test_the_processes_are_given_the_commit_and_their_config_says_it(moved, project):
    plan = launcher.check_launch(["cpu", "shakespeare", TOKENIZER, "seed=3"])
    assert plan.config.data.tokenizer == f"hf:{NAME}@{COMMIT}"
    assert plan.command[-3:] == [TOKENIZER, "seed=3", f"data.tokenizer=hf:{NAME}@{COMMIT}"]
    assert plan.config.seed == 3


def test_what_cannot_be_had_is_refused_before_anything_starts(hub_server, project):
    said = trainer("launch", "cpu", "shakespeare", TOKENIZER)
    assert said.code == 2 and not (project / "runs").exists()
    says(paragraph(said.err), NAME, "hf auth login")
