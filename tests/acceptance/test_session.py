"""outcome.json tells the truth about a run whatever happened to it: its step, its export, and why it ended."""

import errno
import json
import shutil
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import paragraph, trainer
from tests.events import events_of
from tests.launching import TINY_GPT2, Started, checkpoint, final_bytes, outcome, records, steps, train, write_recipe
from tests.messages import logged, says
from tests.unit.model.tiny import tiny_model
from trainer import loop, session
from trainer.config.folders import command_line
from trainer.config.load import load
from trainer.config.schema import EvaluationConfig
from trainer.data.tokenizer import load_tokenizer
from trainer.ending.outcome_file import read_outcome, write_outcome
from trainer.ending.outcomes import Ending, Outcome
from trainer.ending.ranks import leave_failure
from trainer.errors import ConfigError, DataError, RankLostError
from trainer.evaluation.generate import Limits, Row, Sampling, generate
from trainer.parallel import Replicated
from trainer.run.evaluating import samples_of

SHORT = ("max_steps=10", "schedule.warmup_steps=2")


@pytest.fixture
def recipe(tmp_path):
    """A run of ten steps that finished."""
    path = write_recipe(tmp_path)
    train(path, *SHORT)
    return path


def exported(recipe):
    return recipe.parent / "runs" / "tiny" / "exported"


def check_export(recipe, step):
    said = outcome(recipe)
    assert (said["outcome"], said["step"], said["exported_step"], said["exported"]) == (
        "finished",
        step,
        step,
        str(exported(recipe)),
    )
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (exported(recipe), checkpoint(recipe, step)))
    assert theirs.keys() == ours.keys()
    assert all(
        torch.equal(value, ours[name][: len(value)]) for name, value in theirs.items()
    )  # without the padding of the vocabulary
    assert not list(exported(recipe).parent.glob(".*exported*"))


def put_back(recipe, before, **changes):
    """Makes outcome.json what a launch leaves that was killed later than `before`."""
    (exported(recipe).parent / "outcome.json").write_text(json.dumps({**before, **changes}))


def test_a_run_killed_after_its_last_commit_is_exported_by_the_next_launch(recipe):
    check_export(recipe, 10)
    before = outcome(recipe)
    shutil.copytree(exported(recipe), exported(recipe).with_name("earlier"))
    train(recipe, "max_steps=20")
    check_export(recipe, 20)
    shutil.rmtree(exported(recipe))
    exported(recipe).with_name("earlier").rename(exported(recipe))
    put_back(recipe, before, outcome="running")
    train(recipe, "max_steps=20")
    check_export(recipe, 20)
    assert "loss" not in outcome(recipe) or outcome(recipe)["loss"] != before["loss"]


def test_a_run_killed_while_it_replaced_its_export_has_a_whole_one_after_the_next_launch(recipe):
    before = outcome(recipe)
    exported(recipe).rename(exported(recipe).with_name(".earlier-exported"))
    exported(recipe).with_name(".staging-exported-123").mkdir()
    mine = exported(recipe).with_name(".staging-exported-mine-123")
    mine.mkdir()
    put_back(recipe, before, outcome="running")
    train(recipe, *SHORT)
    mine.rmdir()
    check_export(recipe, 10)


def test_a_finished_run_that_is_started_again_keeps_its_export_and_says_the_same(recipe):
    before, made = outcome(recipe), exported(recipe).stat().st_ino
    train(recipe, *SHORT)
    after = outcome(recipe)
    assert exported(recipe).stat().st_ino == made
    for key in ("loss", "val_loss", "exported_step"):
        assert after[key] == before[key] is not None


def test_steps_that_are_taken_again_are_exported_again(recipe):
    made = exported(recipe).stat().st_ino
    train(recipe, *SHORT, "resume_from_checkpoint=5", "optimizer.lr=0.001")
    check_export(recipe, 10)
    assert exported(recipe).stat().st_ino != made


def test_the_log_ends_with_what_the_run_came_to_and_what_opens_it(recipe):
    *_, model, last = (recipe.parent / "runs" / "tiny" / "train.log").read_text().splitlines()
    says(model, exported(recipe), command_line("generate", str(exported(recipe).parent)))
    first, final = (record["val_loss"] for record in records(recipe) if "val_loss" in record)
    says(last, "INFO", "finished", "step 10", "1.28k tokens")
    assert last.endswith(f"tokens/s; validation loss {first:.4f} at step 8, {final:.4f} at step 10")


def test_a_run_that_was_declared_finished_takes_no_step_until_something_else_is_asked_of_it():
    config, before = load("shakespeare", ["max_steps=3000"]).config, {"step": 20, "planned_steps": 3000}
    assert session.declared_finished(config, before, 20).outcome == Outcome.FINISHED
    assert (
        session.declared_finished(config, before, 16)
        is session.declared_finished(config, {"step": 20}, 20)
        is session.declared_finished(config, None, 0)
        is None
    )
    for override in ("max_steps=3001", "resume_from_checkpoint=20"):
        assert session.declared_finished(load("shakespeare", ["max_steps=3000", override]).config, before, 20) is None


# What goes wrong after the last step


@pytest.fixture
def ended(tmp_path):
    """A run that took its ten steps, as far as its end looks at it."""
    return SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True),
        parallel=SimpleNamespace(is_sharded=False),
        progress=SimpleNamespace(step=10),
        folder=tmp_path / "runs" / "tiny",
        consensus=SimpleNamespace(latest=None),
        reporter=SimpleNamespace(verdict=None),
        eval_schedule=SimpleNamespace(loss_at=lambda step: 2.5, last_loss=2.5, last_step=10),
    )


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("too long"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("a kernel that is not there"),
    ],
)
@pytest.mark.parametrize("what", ["sample", "_export"])
def test_a_run_has_finished_also_when_its_sample_or_its_export_fails(ended, monkeypatch, caplog, what, error):
    def fails(run):
        raise error

    def conclude():
        session.conclude(ended, read_outcome(ended.folder), Ending(Outcome.FINISHED, "all 10 steps were taken"))
        return read_outcome(ended.folder)

    works = {"sample": lambda run: "To be", "_export": lambda run: run.folder / "exported"}
    for name, work in works.items():
        monkeypatch.setattr(session, name, fails if name == what else work)
    said = conclude()
    assert (said["outcome"], said["exit_code"], said["val_loss"]) == ("finished", 0, 2.5)
    kind = "RuntimeError: " if isinstance(error, RuntimeError) else ""
    says(said["untidy"], what.strip("_"), f"{kind}{error}")
    logged(caplog, said["untidy"])
    assert ("sample" in said, "exported" in said) == (what == "_export", what == "sample")

    monkeypatch.setattr(session, what, works[what])
    said = conclude()
    assert said["sample"] == "To be"
    assert said["exported_step"] == 10
    assert "untidy" not in said


def sampled(model, **settings):
    """The sample of a run that ended with this model."""
    corpus = SimpleNamespace(tokenizer=load_tokenizer("bytes"), vocab_size=257)
    config = SimpleNamespace(evaluation=EvaluationConfig(**settings), sequence_length=32, seed=1)
    return session.sample(SimpleNamespace(samples=lambda: samples_of(config, corpus, Replicated(None), model)))


def test_the_sample_of_a_run_continues_its_first_prompt_and_there_may_be_none():
    model = tiny_model("llama-tied")
    first = sampled(model, prompt="Enter", sample_tokens=9)
    drawn = Row(prompt_ids=[256, *b"Enter"], sampling=Sampling(temperature=0.8, top_k=50), seed=1)
    (written,) = generate(model, [drawn], Limits(max_new_tokens=9, sequence_length=32, vocab_size=257))
    assert first == "Enter" + load_tokenizer("bytes").decode(written.tokens)
    assert sampled(model, prompt="no", sample_prompts=["Enter", "Exit"], sample_tokens=9) == first
    assert sampled(model, prompt="Enter", sample_tokens=0) is None


def test_a_run_whose_weights_are_no_numbers_has_a_sample_that_says_so():
    model = tiny_model("llama-tied")
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, float("nan"))
    assert sampled(model, prompt="Enter") == "Enter [the logits are not finite]"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_samples_that_one_rank_takes_change_no_bit_of_the_run(tmp_path, num_processes):
    settings = {"every_steps": 4, "sample_prompts": ["a", "Enter"], "sample_tokens": 5}
    ends = []
    for name, every_steps in (("without", 0), ("with", 4)):
        (tmp_path / name).mkdir()
        recipe = write_recipe(
            tmp_path / name, evaluation={**settings, "samples_every_steps": every_steps}, model={"config": TINY_GPT2}
        )  # with dropout, which draws
        run = Started(recipe, SHORT, num_processes)
        assert run.wait() == 0, run.text()
        assert outcome(recipe)["sample"].startswith("a")
        ends.append(final_bytes(recipe, 10))
    assert ends[0] == ends[1]


def test_what_a_finished_run_left_undone_is_done_when_it_is_started_again(recipe):
    put_back(recipe, outcome(recipe), untidy="its export failed: the disk was full")
    (exported(recipe) / "model.safetensors").unlink()
    train(recipe, *SHORT)
    check_export(recipe, 10)
    assert "untidy" not in outcome(recipe)


# What goes wrong once a run trains


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A session whose training raises an error, in this process; gives its config."""

    def fail(error):
        def raises(run):
            raise error

        run = SimpleNamespace(
            progress=SimpleNamespace(step=7),
            consensus=SimpleNamespace(latest=None),
            reporter=SimpleNamespace(abandon=lambda: None),
            profiler=SimpleNamespace(close=lambda: None),
        )
        monkeypatch.setattr(session, "begin_run", lambda config, stop: run)
        monkeypatch.setattr(session, "train", raises)
        return load(str(write_recipe(tmp_path))).config

    return fail


def test_a_full_disk_does_not_hide_the_error_that_ended_a_run(failing, monkeypatch, caplog):
    config = failing(ZeroDivisionError("the first error"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session, "write_outcome", full)
    with pytest.raises(ZeroDivisionError, match="the first error"):
        session.run_session(config)
    told = [record.message for record in caplog.records if record.message.endswith("it does not say: failed")]
    assert len(told) == 1
    says(told[0], "outcome.json", "No space left on device")


def test_a_rank_withdraws_what_it_left_in_an_earlier_launch_before_it_meets_the_others(failing, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    config, note, seen = failing(ZeroDivisionError()), tmp_path / "runs" / "tiny" / ".failed-rank-1", []
    leave_failure(note.parent, "failed", "long ago")
    monkeypatch.setattr(session, "begin_run", lambda config, stop: seen.append(note.exists()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.run_session(config)
    assert seen == [False]
    assert "long ago" not in note.read_text()


def test_a_mistake_that_shows_once_a_run_trains_is_a_failure_with_its_exit_code(failing, tmp_path):
    write_outcome(tmp_path / "runs" / "tiny", "finished", step=5, reason="because", exported_step=5)
    with pytest.raises(DataError) as caught:
        session.run_session(failing(DataError("a shard was lost")))
    said = outcome(tmp_path / "tiny.yaml")
    assert (said["outcome"], said["step"], said["exit_code"]) == ("failed", 7, 1)
    assert "exported_step" not in said
    assert caught.value.exit_code == 1


def test_an_operation_without_a_deterministic_form_is_a_paragraph_that_names_the_setting(failing, tmp_path):
    with pytest.raises(ConfigError) as caught:
        session.run_session(
            failing(
                RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set it to be")
            )
        )
    says(caught.value, "cumsum_cuda_kernel", "deterministic=false")
    assert (outcome(tmp_path / "tiny.yaml")["outcome"], caught.value.exit_code) == ("failed", 1)


def test_a_rank_that_ends_with_another_while_it_waits_in_a_gpu_leaves_its_journal_and_the_outcome_first(
    failing, tmp_path, monkeypatch
):
    seen = []

    def leave(code):
        seen.append((code, outcome(tmp_path / "tiny.yaml")))
        raise SystemExit(code)

    @contextmanager
    def at_once(folder, end):
        end(RankLostError("rank 1: a bad shard", was_said=True))
        yield

    monkeypatch.setattr(session.os, "_exit", leave)
    monkeypatch.setattr(session, "ended_with_peers", at_once)
    with pytest.raises(SystemExit):
        session.run_session(failing(ZeroDivisionError()))
    ((code, said),) = seen
    assert (code, said["outcome"], said["reason"]) == (1, "failed", "rank 1: a bad shard")
    assert '"cause": "peer"' in (tmp_path / "runs" / "tiny" / "journal.jsonl").read_text()


def test_the_clock_of_a_run_that_failed_begins_once_it_has_said_why_and_that_of_no_other(
    failing, tmp_path, monkeypatch
):
    ends = []
    monkeypatch.setattr(session, "end_soon", lambda: ends.append(outcome(tmp_path / "tiny.yaml")["outcome"]))
    with pytest.raises(ZeroDivisionError):
        session.run_session(failing(ZeroDivisionError("a bug")))
    assert ends == ["failed"]


def raise_within_step(number):
    """What goes wrong once the numbers of this step were handed over."""
    report = loop.report

    def report_and_fail(run, *arguments):
        known = report(run, *arguments)
        if run.progress.step == number:
            raise DataError("a shard was lost")
        return known

    loop.report = report_and_fail


def test_a_run_that_fails_leaves_its_curves_whole_and_the_profile_it_had_begun(tmp_path):
    recipe = write_recipe(tmp_path, profile={"steps": [3, 9]})
    run = Started(recipe, SHORT, 1, partial(raise_within_step, 5))
    assert run.wait() == 1
    assert paragraph(run.text()[run.text().index("error:") :]) == "error: a shard was lost"
    folder = recipe.parent / "runs" / "tiny"
    assert sorted(path.name for path in (folder / "profile").iterdir())[1] == "rank-0-steps-3-4.pt.trace.json.gz"
    assert [event.step for event in events_of(recipe).Scalars("Loss/train")] == [1, 2, 3, 4, 5]


def test_what_writing_a_profile_takes_is_no_part_of_a_step(tmp_path):
    recipe = write_recipe(tmp_path, profile={"steps": [2, 3]})
    train(recipe, "max_steps=5")
    (after,) = [record for record in steps(recipe) if "time/profile_seconds" in record]
    parts = sum(value for key, value in after.items() if key.startswith("time/"))
    assert after["step"] == 4
    assert after["step_seconds"] < parts - after["time/profile_seconds"] / 2


def test_the_command_ends_with_the_code_that_the_outcome_states(failing, tmp_path):
    failing(DataError("a shard was lost"))
    said = trainer("train", str(tmp_path / "tiny.yaml"))
    assert said.code == outcome(tmp_path / "tiny.yaml")["exit_code"] == 1
    assert paragraph(said.err) == "error: a shard was lost"
