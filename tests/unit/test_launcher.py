import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.commands import trainer
from tests.messages import logged, refuses, says
from trainer import files, launcher, launcher_child, locks, start
from trainer.config.load import load
from trainer.config.waiting import CHOSEN_BY, waiting
from trainer.ending.outcome_file import read_outcome, write_outcome
from trainer.ending.outcomes import EXIT_CODES
from trainer.errors import ConfigError
from trainer.journal import read_events
from trainer.metrics.memory_advice import advice
from trainer.safety import forward
from trainer.safety.forward import STOPS, Forwarding


def launched(plan):
    with Forwarding() as signals:
        return launcher.run_launch(plan, signals)


def gpus(monkeypatch, number):
    monkeypatch.setattr(launcher.clusters, "count_gpus", lambda: number)


# The words of the command line


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ([], (None, "shakespeare", [])),
        (["cpu"], ("cpu", "shakespeare", [])),
        (["gpt2-124m"], (None, "gpt2-124m", [])),
        (["cpu", "gpt2-124m"], ("cpu", "gpt2-124m", [])),
        (["seed=1", "cpu", "name=a=b", "mine.yaml"], ("cpu", "mine.yaml", ["seed=1", "name=a=b"])),
        (["max_steps=3"], (None, "shakespeare", ["max_steps=3"])),
    ],
)
def test_the_words_are_cluster_recipe_and_overrides(words, split):
    assert launcher.split_words(words) == split


def test_an_equals_sign_in_the_path_of_a_file_makes_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep" / "lr=3e-4").mkdir(parents=True)
    for name in ("lr=3.yaml", "sweep/lr=3e-4/mine.yaml", "seed=1.yaml"):
        (tmp_path / name).write_text("seed: 1\n")
    (tmp_path / "gpus=4.yaml").write_text("distributed_type: MULTI_GPU\n")
    recipe, there, unknown = "sweep/lr=3e-4/mine.yaml", f"{tmp_path}/lr=3.yaml", "sweep/lr=1/mine.yaml"
    assert launcher.split_words([recipe]) == (None, recipe, [])
    assert launcher.split_words(["gpus=4.yaml", there, "seed=2"]) == ("gpus=4.yaml", there, ["seed=2"])
    assert launcher.split_words(["cpu", "lr=3.yaml"]) == ("cpu", "lr=3.yaml", [])
    assert launcher.split_words(["cpu", unknown]) == ("cpu", unknown, []), "which is told as missing"
    overrides = [
        "seed=1.yaml",
        "data.corpus=a/b",
        "data.train=[a/b.bin]",
        "data.tokenizer=sweep/lr=1/mine.tiktoken",
        "typo/lr=1",
    ]
    assert launcher.split_words(overrides) == (None, "shakespeare", overrides), "the name of a setting stays one"


def test_a_third_name_is_refused():
    with refuses(ConfigError, "cpu shakespeare resume"):
        launcher.split_words(["cpu", "shakespeare", "resume"])


# The batch


def test_a_batch_that_does_not_divide_among_the_processes_of_the_cluster_file_is_refused(cluster):
    with refuses(ConfigError, "global_batch", 16, "micro_batch", "8 x 3 = 24", "nearest: 24"):
        launcher.check_launch([str(cluster(num_processes=3, use_cpu=True)), "shakespeare"])


# The plan


def test_a_plan_is_the_command_and_the_environment_of_a_launch(cluster, monkeypatch):
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "PYTHONSAFEPATH", *CHOSEN_BY):
        monkeypatch.delenv(name, raising=False)
    path = cluster()
    plan = launcher.check_launch([path, "shakespeare", "name=mine", "seed=3"])
    assert plan.command == start.command(
        "trainer.launcher_child",
        "--config_file",
        path,
        "--mixed_precision",
        "no",
        start.SCRIPT,
        "trainer",
        "train",
        "shakespeare",
        "name=mine",
        "seed=3",
    )
    changed = {key: value for key, value in plan.environment.items() if os.environ.get(key) != value}
    assert changed == {
        "PYTHONSAFEPATH": "1",
        **waiting({}),
        "TRAINER_ASKED_PRECISION": "no",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
        "ACCELERATE_USE_CPU": "true",
    }
    assert plan.folder == files.project_folder() / "runs" / "mine"
    assert plan.config.seed == 3


def test_a_time_to_shut_down_that_a_person_chose_stays(cluster, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
    assert launcher.check_launch([cluster(), "shakespeare"]).environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "7"


def test_fp8_is_asked_of_the_trainer_and_not_of_the_launcher_that_would_die_of_it(cluster):
    plan = launcher.check_launch([cluster(mixed_precision="fp8"), "shakespeare"])
    assert plan.command[plan.command.index("--mixed_precision") + 1] == "bf16"
    assert plan.environment["TRAINER_ASKED_PRECISION"] == "fp8"


def test_settings_of_fp8_that_a_cluster_file_has_and_nobody_reads_are_told(cluster):
    with pytest.raises(ConfigError) as caught:
        launcher.check_launch(
            [cluster(mixed_precision="fp8", fp8_config={"backend": "MSAMP", "amax_history_len": 16}), "shakespeare"]
        )
    says(caught.value, "fp8_config.amax_history_len", "fp8_config.backend", "'MSAMP'")
    launcher.check_launch([cluster(mixed_precision="fp8", fp8_config={"backend": "TE"}), "shakespeare"])


def test_without_words_the_plan_is_shakespeare_on_this_machine(monkeypatch):
    gpus(monkeypatch, 0)
    plan = launcher.check_launch([])
    assert plan.cluster.path.stem == "cpu"
    assert plan.config.name == "shakespeare"


def test_more_gpus_than_there_are_is_refused_with_a_file_that_fits(cluster, monkeypatch):
    gpus(monkeypatch, 1)
    with refuses(ConfigError, "2 GPUs", 1, "1gpu_bf16"):
        launcher.check_launch([cluster(use_cpu=None), "shakespeare"])


@pytest.mark.parametrize("num_gpus", [4, 3])
def test_a_cluster_of_several_machines_wants_its_share_of_gpus_on_this_one(cluster, monkeypatch, num_gpus):
    gpus(monkeypatch, num_gpus)
    words = [cluster(use_cpu=None, num_processes=8, num_machines=2), "shakespeare", "micro_batch=2"]
    if num_gpus == 4:
        assert launcher.check_launch(words).cluster.num_processes == 8
    else:
        with refuses(ConfigError, "4 GPUs", 3):
            launcher.check_launch(words)


# What came of it


def test_every_outcome_has_its_code_and_none_is_the_launchers():
    assert {kind: launcher.exit_code(9, {"outcome": kind}) for kind in EXIT_CODES} == EXIT_CODES
    assert launcher.exit_code(0, {"outcome": "running"}) == 0, "finished, and the disk too full to say so"
    assert launcher.exit_code(-9, None) == 1, "a launcher that was killed"
    assert launcher.exit_code(7, None) == 7
    assert launcher.exit_code(0, None) == 1


def planned(project, script=""):
    """A plan whose launcher is a few lines of Python."""
    config = load("shakespeare", ["name=mine", "max_steps=30"]).config
    command = [sys.executable, "-c", script]
    cluster = launcher.clusters.Cluster(Path("x"), 1, "no", True)
    return launcher.CheckedLaunch(config, cluster, command, dict(os.environ), project / "runs" / "mine")


@pytest.mark.parametrize(
    ("outcome", "step", "resume", "finished"),
    [
        ("finished", 30, "latest", True),
        ("finished", 20, "latest", False),
        ("interrupted", 30, "latest", False),
        ("finished", 30, "20", False),
        (None, 30, "latest", False),
        ("finished", None, "latest", False),
    ],
)
def test_a_run_is_finished_when_it_says_so_and_its_last_step_is_on_disk(project, outcome, step, resume, finished):
    plan = planned(project)
    plan = replace(plan, config=plan.config.model_copy(update={"resume_from_checkpoint": resume}))
    if outcome:
        write_outcome(plan.folder, outcome, step=30, reason="because")
    for number in (10, step):
        if number:
            (project / "checkpoints" / "mine" / f"step-{number:08d}").mkdir(parents=True)
    (project / "checkpoints" / "mine" / "step-00000099.bak").mkdir(parents=True)
    assert launcher.is_finished(plan) is finished
    assert launcher.newest_step(plan.config) == (step or 10)


def test_a_run_that_left_something_undone_is_launched_again(project):
    plan = planned(project)
    (project / "checkpoints" / "mine" / "step-00000030").mkdir(parents=True)
    write_outcome(plan.folder, "finished", step=30, reason="because", untidy="its export failed: full")
    assert not launcher.is_finished(plan)


def leaves(plan, outcome):
    """A launcher's script that leaves an outcome, then fails."""
    content = json.dumps({"outcome": outcome, "step": 1, "reason": "new"})
    return f"open({str(plan.folder / 'outcome.json')!r}, 'w').write({content!r}); raise SystemExit(1)"


def test_the_exit_code_is_that_of_the_run_and_not_of_the_launcher(project):
    plan = planned(project)
    write_outcome(plan.folder, "running", step=0, reason="before")
    plan.command[2] = leaves(plan, "interrupted")
    assert launched(plan) == 75


def test_the_outcome_of_an_earlier_launch_says_nothing_about_this_one(project):
    plan = planned(project, "raise SystemExit(6)")
    write_outcome(plan.folder, "finished", step=10, reason="an earlier launch")
    assert launched(plan) == 6


def test_a_refusal_beside_an_earlier_outcome_is_this_launchs_and_an_earlier_refusal_is_not(project):
    plan = planned(project)
    write_outcome(plan.folder, "finished", step=10, reason="an earlier launch")
    plan.command[2] = refuses = f"""
from pathlib import Path
from trainer.ending.outcome_file import read_outcome, write_refusal
write_refusal(Path({str(plan.folder)!r}), read_outcome(Path({str(plan.folder)!r})), "no data")
raise SystemExit(1)"""
    assert launched(plan) == 2
    plan.command[2] = "raise SystemExit(6)"
    assert launched(plan) == 6
    plan.command[2] = refuses
    assert launched(plan) == 2


TOLD = """
import os, signal, sys, time
def heard(number, _):
    open({heard!r}, "a").write(signal.Signals(number).name)
    {leave}
    sys.exit(44)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, heard)
os.kill(os.getppid(), signal.{name})
time.sleep(10)
"""


def writes(plan, outcome, reason="new"):
    content = json.dumps({"outcome": outcome, "step": 1, "reason": reason})
    return f"open({str(plan.folder / 'outcome.json')!r}, 'w').write({content!r})"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
@pytest.mark.parametrize(
    ("left", "code", "said"),
    [
        (None, 75, "first step"),
        (("running", "starting"), 75, "first step"),
        (("running", "training"), 75, "checkpoint"),
        (("finished", "because"), 0, ""),
        (("refused", "because"), 2, ""),
    ],
)
def test_a_signal_reaches_the_launcher_and_what_left_no_end_was_interrupted(project, caplog, name, left, code, said):
    plan = planned(project)
    write_outcome(plan.folder, "finished", step=10, reason="an earlier launch")
    plan.command[2] = TOLD.format(
        name=name, leave=writes(plan, *left) if left else "pass", heard=str(project / "heard")
    )
    before = [signal.getsignal(number) for number in STOPS]
    assert launched(plan) == code
    assert (project / "heard").read_text() == ("SIGTERM" if name == "SIGQUIT" else name)
    assert [said in message for message in caplog.messages] == ([True] if said else [])
    if left and left[0] == "running":
        assert (read_outcome(plan.folder)["outcome"], read_events(plan.folder)[-1]["cause"]) == ("interrupted",) * 2
    assert before == [signal.getsignal(number) for number in STOPS]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_while_a_launch_is_checked_asks_to_be_queued_again(monkeypatch, caplog, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(launcher, "check_launch", lambda words: os.kill(os.getpid(), number))
    assert trainer("launch", "cpu").code == 75
    assert caplog.messages == [launcher.STOPPED_EARLY]
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup(project):
    script = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); raise SystemExit(46)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launched(planned(project, script)) == 46
    finally:
        signal.signal(signal.SIGHUP, before)


TWICE = """
import os, signal, time
heard = []
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: heard.append(signal.Signals(number).name))
for name in {names!r}:
    os.kill(os.getppid(), signal.Signals[name])
    time.sleep(0.3)
open({path!r}, "w").write(" ".join(heard))
"""


@pytest.mark.parametrize("names", [["SIGHUP", "SIGTERM"], ["SIGTERM", "SIGHUP"], ["SIGTERM", "SIGTERM"]])
def test_a_second_signal_does_not_end_the_wait_for_the_last_save(project, names):
    assert launched(planned(project, TWICE.format(names=names, path=str(project / "heard")))) == 75
    assert (project / "heard").read_text() == names[0]


ASKED = """
import os, signal, time
heard = []
if {listens}:
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: heard.append(signal.Signals(number).name))
for number in (signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getppid(), number)
    time.sleep(0.3)
open({path!r}, "w").write(" ".join(heard))
raise SystemExit(47)
"""


@pytest.mark.parametrize(("listens", "heard"), [(True, "SIGUSR1 SIGUSR2"), (False, "")])
def test_what_asks_a_run_for_something_reaches_only_who_listens_and_ends_nobody(project, listens, heard):
    plan = planned(project, ASKED.format(listens=listens, path=str(project / "heard")))
    assert launched(plan) == 47
    assert (project / "heard").read_text() == heard


PRESSED_TWICE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, lambda *_: None)
rank = subprocess.Popen(["sleep", "60"])
{left}
open({rank!r}, "w").write(str(rank.pid))
os.kill(os.getppid(), signal.SIGINT)
time.sleep({pause})
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.5)
rank.kill()
open({lived!r}, "w").close()
"""


@pytest.mark.parametrize(("pause", "lives"), [(0.4, False), (0.0, True)], ids=["pressed again", "delivered twice"])
def test_ctrl_c_again_kills_the_launch_at_once(project, monkeypatch, pause, lives):
    monkeypatch.setattr(forward, "REPEATED_SECONDS", 0.2)
    plan, rank, lived = planned(project), project / "rank", project / "lived"
    write_outcome(plan.folder, "finished", step=10, reason="an earlier launch")
    left = writes(plan, "running", "training")
    plan.command[2] = PRESSED_TWICE.format(left=left, rank=str(rank), lived=str(lived), pause=pause)
    assert launched(plan) == 75
    assert lived.exists() == lives
    assert read_outcome(plan.folder)["outcome"] == "interrupted"
    if not lives:
        pid = int(rank.read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


LEAVES_A_RANK = """
import os, signal, subprocess, sys, time
rank = "import os, signal, time; from trainer import beats; signal.signal(signal.SIGTERM, signal.SIG_IGN); beats.beat(1, 'training'); "
rank += "open({rank!r}, 'w').write(str(os.getpid())); os.kill(os.getpid(), signal.SIGSTOP); open({heard!r}, 'w').close(); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", rank], start_new_session=True)
while not os.path.exists({rank!r}) or not open({rank!r}).read():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_rank_that_a_killed_launcher_left_behind_does_not_outlive_the_launch(project, monkeypatch):
    """It would keep its GPU's memory and its connections for the launch that follows."""
    monkeypatch.setattr(launcher, "SHUTDOWN_SECONDS", 1.0)
    plan, rank, heard = planned(project), project / "rank", project / "heard"
    plan.command[2] = LEAVES_A_RANK.format(rank=str(rank), heard=str(heard))
    assert launched(plan) == 1
    assert heard.exists(), "it was suspended, and could end by itself once it was woken"
    pid = int(rank.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_comes_between_two_launches_is_sent_to_nobody(project, monkeypatch):
    """The number of a launcher that has ended may be another process's."""
    sent = []
    monkeypatch.setattr(forward, "send_if_caught", lambda *given: sent.append(given))
    with Forwarding() as signals:
        assert launcher.run_launch(planned(project, "raise SystemExit(6)"), signals) == 6
        os.kill(os.getpid(), signal.SIGUSR1)
    assert sent == []


def test_the_launchers_modules_say_nothing_of_a_stop():
    import torch.distributed.elastic.agent.server.api  # as a launch has it

    loggers = [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.startswith("torch.distributed.elastic")
    ]
    levels = {logger: logger.level for logger in loggers}
    try:
        launcher_child.quiet_elastic()
        assert not torch.distributed.elastic.agent.server.api.logger.isEnabledFor(logging.WARNING)
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


# What no rank could say


def seen(rank, exit_code, then="raise SystemExit(1)"):
    """A launcher's script that tells how a rank ended; the rank's pid is 1."""
    return f"from trainer.ending.launcher import *; send_failure(ProcessFailure({rank}, 1, {exit_code})); {then}"


def curve(plan, step):
    """The curve of a run that has taken this many steps."""
    (plan.folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n}) + "\n" for n in range(1, step + 1)))


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (
            -signal.SIGKILL,
            ["rank 1", "SIGKILL", "out of memory", "dmesg", advice(8, "no")],
        ),
        (-signal.SIGSEGV, ["rank 1", "SIGSEGV"]),
        (1, ["rank 1", "exit code 1"]),
    ],
)
def test_a_run_that_says_it_goes_on_and_does_not_has_failed_for_a_reason(project, caplog, exit_code, words):
    plan = planned(project)
    plan.command[2] = f"{leaves(plan, 'running').removesuffix('; raise SystemExit(1)')}; {seen(1, exit_code)}"
    write_outcome(plan.folder, "interrupted", step=0, reason="before")
    curve(plan, 7)
    assert launched(plan) == 1
    ended = read_outcome(plan.folder)
    assert (ended["outcome"], ended["step"]) == ("failed", 7)
    assert caplog.messages == [ended["reason"]]
    says(ended["reason"], *words)


def test_the_words_of_a_rank_that_failed_are_the_reason_where_rank_0_could_not_write_them(project, monkeypatch):
    plan = planned(project)
    plan.command[2] = f"{leaves(plan, 'running').removesuffix('; raise SystemExit(1)')}; {seen(1, 1)}"
    write_outcome(plan.folder, "interrupted", step=0, reason="before")
    note = {"rank": 1, "pid": 1, "group": "here", "outcome": "failed", "reason": "a bad shard"}
    (plan.folder / ".failed-rank-1").write_text(json.dumps(note))
    assert launched(plan) == 1
    assert read_outcome(plan.folder)["reason"] == "rank 1: a bad shard"
    (plan.folder / ".failed-rank-1").write_text(json.dumps({**note, "pid": 2}))  # of an earlier launch
    assert launched(plan) == 1
    says(read_outcome(plan.folder)["reason"], "exit code 1")


@pytest.mark.parametrize(("exit_code", "words"), [(-9, ["rank 1", "SIGKILL"]), (1, ["new"])])
def test_a_killed_rank_is_the_reason_where_another_only_knows_that_it_was_lost(project, exit_code, words):
    plan = planned(project)
    plan.command[2] = f"{leaves(plan, 'failed').removesuffix('; raise SystemExit(1)')}; {seen(1, exit_code)}"
    write_outcome(plan.folder, "running", step=0, reason="before")
    assert launched(plan) == 1
    says(read_outcome(plan.folder)["reason"], *words)


@pytest.mark.parametrize(("exit_code", "left"), [(2, "running"), (75, "interrupted"), (3, "diverged")])
def test_a_rank_that_ended_with_a_code_of_the_runs_own_has_said_all(project, caplog, exit_code, left):
    """Code 2 beside `running`: two launches of one run, and the outcome is that of the one that trains it."""
    plan = planned(project)
    plan.command[2] = f"{leaves(plan, left).removesuffix('; raise SystemExit(1)')}; {seen(0, exit_code)}"
    write_outcome(plan.folder, "running", step=0, reason="before")
    assert launched(plan) == exit_code
    assert read_outcome(plan.folder)["reason"] == "new"
    assert caplog.messages == []


def test_the_outcome_of_a_run_that_another_launch_trains_is_left_to_it(project, caplog):
    plan = planned(project, seen(0, -9))
    write_outcome(plan.folder, "running", step=3, reason="training")
    with locks.take(plan.folder / ".lock"):
        assert launched(plan) == 1
    assert read_outcome(plan.folder)["outcome"] == "running"
    logged(caplog, "another process", "mine")


LEFT_BEHIND = """
import os, time
from pathlib import Path
from trainer import locks
from trainer.ending.outcome_file import write_outcome
folder = Path({folder!r})
held = locks.take(folder / ".lock")
write_outcome(folder, "running", step=0, reason="training")
if os.fork():
    os.kill(os.getpid(), 9)
time.sleep(1)
write_outcome(folder, "interrupted", step=1, reason="SIGTERM was received")
"""


def test_ranks_that_a_killed_launcher_leaves_behind_are_waited_for_and_nobody_has_asked_them_to_stop(project):
    plan = planned(project)
    plan.command[2] = LEFT_BEHIND.format(folder=str(plan.folder))
    assert launched(plan) == 1
    ended = read_outcome(plan.folder)
    assert ended["outcome"] == "failed"
    says(ended["reason"], "launcher", "SIGKILL")
    assert read_events(plan.folder, "stop")[-1]["cause"] == "SIGKILL"


def test_ranks_that_outlive_a_failed_one_are_waited_for_shortly_and_those_that_save_as_long_as_was_said(monkeypatch):
    from torch.distributed.elastic.multiprocessing.api import PContext

    seen = []
    monkeypatch.setattr(PContext.close, "__defaults__", (None, 30))
    monkeypatch.setattr(launcher_child, "end_with_parent", lambda: None)
    monkeypatch.setenv("TRAINER_STARTED_BY", "1")
    monkeypatch.setattr("accelerate.commands.launch.main", lambda: seen.append(PContext.close.__defaults__))
    heard = signal.getsignal(signal.SIGINT)
    try:
        assert launcher_child.accelerate_launch() == 0
    finally:
        signal.signal(signal.SIGINT, heard)
    assert seen == [(None, launcher_child.LOST_SECONDS)]
    assert launcher_child.LOST_SECONDS < 30 < launcher.SHUTDOWN_SECONDS
