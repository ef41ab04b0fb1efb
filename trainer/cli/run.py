"""The commands that take a run to its end: `launch`, `train` within it, `save` and `stop` beside it, and `finish`; a launch says at its end what came of it."""

import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.options import LaunchArgument, NameArgument
from trainer.streams import answer, need_not_be_heard, say, tell
from trainer.text import numbered

if TYPE_CHECKING:
    from trainer.config.schema import Config


def launch(
    context: typer.Context,
    words: LaunchArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that can be checked, show what would run, and stop.")
    ] = False,
) -> None:
    """Check a run, start it with `accelerate launch`, and report what came of it."""
    from trainer import launcher

    with launcher.stopped_early():
        from trainer.ending.outcome_file import read_outcome
        from trainer.hub_settings import write_down
        from trainer.journal import Journal
        from trainer.safety import request_file
        from trainer.supervise import adapted, follow, supervise, supervised
        from trainer.tools.doctor.install import install_for

        if dry_run:
            from trainer.dry_run import dry_run as look

            answer(look(launcher.read_words(words or []), say))
            return
        checked = adapted(words or [])
        launcher.check_data(checked.config)
        command, code = _as_typed(context, words or []), 0
        if launcher.is_finished(checked):
            tell(f"{launcher.finished_words(checked)}\n")
        else:
            install_for(checked.cluster, checked.config.precision, say)
            if not checked.decides:
                say(f"machine {checked.cluster.machine_rank} of {checked.cluster.num_machines} does as machine 0 does")
                sys.exit(follow(words or [], checked))
            with supervised(checked):
                request_file.withdraw(checked.folder)  # what was asked of an earlier launch
                Journal(checked.folder).write("launch", command=command, folder=str(Path.cwd()))
                write_down(checked.hub_settings, checked.folder)
                for found in filter(None, (each.words for each in checked.hub_settings)):
                    say(found)
                say(f"starting accelerate launch with {numbered(checked.cluster.num_processes, 'process')}")
                code = supervise(words or [], checked)
    if code != 2 and read_outcome(checked.folder):  # a refusal has said all there is
        tell_report(checked.config, checked.folder, command)
    sys.exit(code)


def _as_typed(context: typer.Context, words: list[str]) -> str:
    """The command that starts this launch again, for a shell."""
    from trainer.config.folders import command_line

    door = context.find_root().info_name or ""
    started = Path(sys.argv[0])
    if door.endswith(".sh"):
        return shlex.join([door if "/" in door else f"./{door}", *words])
    return shlex.join([str(started), "launch", *words]) if started.name == "trainer" else command_line(*words)


def tell_report(config: "Config", folder: Path, command: str) -> None:
    """Prints the report of a run that has ended; where it fails, that is said, and the exit code is the run's all the same."""
    from trainer.text import one_line

    try:
        tell(report_of(config, folder, command))
    except Exception as error:
        say(f"no report of {config.name} ({one_line(error)}); {folder / 'outcome.json'} says how it ended")


def report_of(config: "Config", folder: Path, command: str = "", happened: str | None = None) -> str:
    """What came of a run; `command` starts it again, and `happened` is what happened on the way: by default a few lines, if anything did."""
    from trainer.config.folders import checkpoints_folder
    from trainer.data.corpus import known_baselines
    from trainer.history.account import account_of, brief
    from trainer.report import report

    if happened is None:
        account = account_of(folder)
        happened = brief(account) if len(account.ledger.launches) > 1 else ""
    prompt = next(iter(config.evaluation.sample_prompts), config.evaluation.prompt)
    known = known_baselines(config.data)
    checkpoints = checkpoints_folder(config)
    return "\n" + report(config.name, folder, checkpoints, known, prompt=prompt, command=command, happened=happened)


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe's.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting and where it came from, and stop.")
    ] = False,
) -> None:
    """Train or continue a run in this process, which `accelerate launch -m trainer train RECIPE` has started."""
    from trainer.config.folders import run_folder
    from trainer.config.load import flatten
    from trainer.hub_settings import download_weights, write_down
    from trainer.launcher import load_run, with_commits
    from trainer.restart.ends import adapted_micro_batch
    from trainer.safety.forward import ASKS
    from trainer.safety.parent import STARTED_BY
    from trainer.supervise import alerting
    from trainer.text import table

    loaded = load_run(recipe, overrides or [])
    if show_config:
        rows = [(key, json.dumps(value), loaded.origins[key]) for key, value in flatten(loaded.config).items()]
        answer(table([("setting", "value", "from"), *rows], indent=""))
        return
    learnt = adapted_micro_batch(run_folder(loaded.config), loaded.config)
    if learnt is not None:  # what started these processes may not be the supervisor, which knows it
        overrides = [*(overrides or []), f"micro_batch={learnt}"]
        loaded = load_run(recipe, overrides)
    for number in ASKS:  # not heard before the run begins, and by no means its end
        signal.signal(number, signal.SIG_IGN)
    need_not_be_heard()
    # What started these processes may not be the launcher, which has given everything of the hub its commit.
    config, _, hub_settings = with_commits(recipe, overrides or [], loaded.config)
    download_weights(hub_settings, config)
    if os.environ.get("RANK", "0") == "0":
        write_down(hub_settings, run_folder(config))
        say("importing torch, accelerate and transformers")
    from trainer.session import run_session

    if os.environ.get("RANK", "0") == "0":
        for notice in loaded.notices:
            say(notice)
    is_alone = os.environ.get("RANK", "0") == "0" and STARTED_BY not in os.environ  # `./launch.sh` tells of the rest
    with alerting(config, run_folder(config), loaded.webhook) if is_alone else nullcontext():
        code = run_session(config)
    sys.exit(code)


WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Whether the run's answer is waited for.")]
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long it is waited for.")]


def save(
    run: NameArgument,
    pin: Annotated[bool, typer.Option("--pin", help="Keep that checkpoint whatever the tiers say.")] = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = 600.0,
) -> None:
    """Have a run that trains make a checkpoint after its step, and go on; from any machine that sees runs/NAME."""
    from trainer.ask import save as ask_to_save

    tell(ask_to_save(run, pin=pin, wait_seconds=timeout if wait else None))


def stop(run: NameArgument, wait: WaitOption = True, timeout: TimeoutOption = 600.0) -> None:
    """Have a run that trains stop after its step, with a checkpoint; it is not started again. From any machine that sees runs/NAME."""
    from trainer.ask import stop as ask_to_stop

    tell(ask_to_stop(run, wait_seconds=timeout if wait else None))


def fork(
    run: NameArgument,
    name: Annotated[str, typer.Option(help="What the branch is called.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over those of the checkpoint.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
) -> None:
    """Branch off a run: a new run that begins at one of its checkpoints, with other settings. The run itself stays as it is."""
    from trainer.fork import fork as fork_run

    tell(fork_run(run, checkpoint, name, overrides or []))


def finish(run: NameArgument) -> None:
    """Declare a stopped run finished where it stands: its newest sound checkpoint becomes the final one, and is exported."""
    from trainer.finish import finish as finish_run

    tell(finish_run(run).text())
