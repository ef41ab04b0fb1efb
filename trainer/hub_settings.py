"""Settings of a run that name something of the hub: each is given its commit before anything starts, once for the whole life of the run.

Where a run goes on, its own config.yaml and journal say which commit that is, and nobody is asked.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import hub
from trainer.config.folders import checkpoints_folder, run_folder
from trainer.config.load import flatten, read_settings
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.journal import Journal, events_from
from trainer.plugins import import_plugins
from trainer.text import by_dotted_name

TOKENIZER, MODEL = "data.tokenizer", "model.init_from"

EVENT = "hub"
"""In the journal: a setting, as it was given and with its commit."""


@dataclass(frozen=True)
class HubSetting:
    """A setting that names a repository of the hub."""

    setting: str
    given: str
    """As a person wrote it: `hf:NAME[@REVISION]`."""
    at_commit: str
    """What it means for this run: `hf:NAME@COMMIT`."""
    is_kept: bool
    """Whether the run says so itself, from an earlier launch."""

    @property
    def override(self) -> str:
        """The word that gives the processes of the run this commit."""
        return f"{self.setting}={self.at_commit}"

    @property
    def words(self) -> str | None:
        """What the person should know of it; None where they wrote the commit themselves."""
        if self.given == self.at_commit:
            return None
        since = ", as in the launches before" if self.is_kept else ""
        return f"{self.setting} is {self.at_commit}{since}"


def settings_of_hub(config: Config) -> tuple[HubSetting, ...]:
    """Every setting that names something of the hub, with its commit; files that describe it are in the cache after it, weights not yet.

    raises  HubError as `hub.resolve`
    """
    settings = flatten(config)
    given = {key: str(settings[key]) for key in (TOKENIZER, MODEL) if hub.is_hub_name(settings.get(key))}
    return tuple(_with_commit(config, setting, name) for setting, name in given.items())


def download_weights(settings: Sequence[HubSetting], config: Config) -> None:
    """Brings the weights that a run begins from into the cache; a run that has a checkpoint to go on from needs them no more.

    raises  HubError as `hub.resolve`
    """
    for each in settings:
        if each.setting == MODEL and not _goes_on(config):
            hub.resolve(each.at_commit, weights=True)


def write_down(settings: Sequence[HubSetting], folder: Path) -> None:
    """Notes in a run's journal what its names of the hub mean from here on."""
    for each in settings:
        if not each.is_kept and each.given != each.at_commit:
            Journal(folder).write(EVENT, setting=each.setting, given=each.given, at_commit=each.at_commit)


def _with_commit(config: Config, setting: str, given: str) -> HubSetting:
    if setting == MODEL:
        import_plugins(config.plugins)  # one of them may be what makes the repository's own code unneeded
    kept = _kept(config, setting, given)
    if kept is None:
        return HubSetting(setting, given, _at_commit(setting, given), is_kept=False)
    if setting != MODEL or not _goes_on(config):
        _at_commit(setting, kept)
    return HubSetting(setting, given, kept, is_kept=True)


@functools.cache
def _at_commit(setting: str, name: str) -> str:
    """A name at the commit that it means now. Asked once in a process: several launches of one command mean the same."""
    return (hub.look_at_model(name) if setting == MODEL else hub.resolve(name)).at_commit


def _kept(config: Config, setting: str, given: str) -> str | None:
    """The commit that an earlier launch of the run has found for this very name; None where the run begins anew, or names another."""
    folder = run_folder(config)
    if config.resume_from_checkpoint == "none":
        return None
    if (folder / "config.yaml").is_file():
        events = [event for event in events_from(folder, EVENT) if event.get("setting") == setting]
        if events and events[-1].get("given") == given:
            return str(events[-1]["at_commit"])
    if given in (kept := _last_setting(config, setting), kept.rpartition("@")[0]):
        return kept
    return None


def _last_setting(config: Config, setting: str) -> str:
    """What the config.yaml of the run or of its newest checkpoint says of a setting; empty where that names no commit of the hub."""
    checkpoints = sorted(checkpoints_folder(config).glob("step-*"), reverse=True)
    for path in (folder / "config.yaml" for folder in (run_folder(config), *checkpoints)):
        try:
            value: Any = by_dotted_name(read_settings(path)).get(setting)
        except ConfigError:
            continue
        return value if isinstance(value, str) and hub.is_hub_name(value) and hub.names_commit(value) else ""
    return ""


def _goes_on(config: Config) -> bool:
    """Whether there is a checkpoint that the run would go on from, by the names of the folders."""
    return config.resume_from_checkpoint != "none" and any(checkpoints_folder(config).glob("step-*"))
