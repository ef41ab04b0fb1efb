"""The command line: every command by its group, and how a mistake is answered. What is slow to import, a command imports in its body."""

import errno
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from trainer.cli import data, look, machine, model, run
from trainer.cli.alerts import alerts_app
from trainer.cli.checkpoints import checkpoints_app
from trainer.cli.guide import guide
from trainer.cli.runs import runs_app
from trainer.cli.tokenizer import tokenizer_app
from trainer.errors import ConfigError, TrainerError, is_out_of_memory
from trainer.streams import Unheard, make_ready, say, settle
from trainer.text import nearest

GROUPS: dict[str, dict[str, typer.Typer | Callable[..., None]]] = {
    "Run": {
        "launch": run.launch,
        "train": run.train,
        "save": run.save,
        "stop": run.stop,
        "finish": run.finish,
        "fork": run.fork,
        "runs": runs_app,
    },
    "Look": {
        "status": look.status,
        "report": look.report,
        "alerts": alerts_app,
        "tensorboard": look.tensorboard,
        "compare": look.compare,
        "eval": model.evaluate,
        "generate": model.generate,
        "settings": look.settings,
        "guide": guide,
    },
    "Data": {"prepare": data.prepare, "tokenizer": tokenizer_app},
    "Checkpoints": {"checkpoints": checkpoints_app, "export": model.export},
    "Machine": {
        "plan": machine.plan,
        "doctor": machine.doctor,
        "selftest": machine.selftest,
        "bench": machine.bench_app,
        "install-fp8": machine.install_fp8,
    },
}
"""Every command by its name, in the groups of --help; a group's commands stand in the files named after what they serve."""

HELP = """Language-model pretraining on Accelerate. `launch` may be left out before a cluster file, a recipe or KEY=VALUE. Guides: `guide`.
launch.sh and trainer take the same commands; launch.sh installs what is missing first, and without a word it trains Shakespeare."""


def _app() -> typer.Typer:
    made = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=HELP,
    )
    for panel, commands in GROUPS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                made.add_typer(command, name=name, rich_help_panel=panel)
            else:
                made.command(name, rich_help_panel=panel)(command)
    return made


app = _app()

DOOR = "TRAINER_DOOR"
"""Set by launch.sh to how it was called: then these commands are its own."""

_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for words that do not fit a command; it has no public name."""


def main() -> None:
    """Runs a command; what a person has to fix becomes one paragraph on standard error and an exit code, usually 2."""
    make_ready()
    try:
        try:
            _run()
        finally:
            settle()
    except Unheard as error:
        if error.errno != errno.EPIPE:  # whoever read has enough, as `head` has
            say(f"error: standard output cannot be written ({error.reason}); make room there, or send it elsewhere")
        sys.exit(error.exit_code)


def _run() -> None:
    door = os.environ.pop(DOOR, None)
    command = typer.main.get_group(app)
    try:
        words = with_command(sys.argv[1:], list(command.commands), is_launch_sh=door is not None)
        code = command.main(words, prog_name=door or "trainer", standalone_mode=False)
    except TrainerError as error:
        if error.was_said:
            sys.exit(error.exit_code)
        _refuse(str(error), error.exit_code)
    except _UsageError as error:
        if words := error.format_message():
            form = shlex.join([_program(door), *_commands_of(error), "--help"])
            _refuse(f"{words}{'' if words.endswith(('.', '?')) else '.'} See: {form}")
        sys.exit(2)  # a bare `trainer` has shown its help
    except (MemoryError, RuntimeError) as error:
        # The second is torch's, of a GPU, which is not imported here.
        if not is_out_of_memory(error) and type(error).__name__ != "OutOfMemoryError":
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        _refuse(f"out of memory ({said}); end what else uses it, or take a smaller model or fewer texts at once", 1)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Any word may be typed as a path, and any look at it may be the first.
        _refuse(f"the path {error.filename} is too long for this disk, or a name in it is; give a shorter one")
    except typer.Abort:
        sys.exit(130)
    sys.exit(code or 0)


def _program(door: str | None) -> str:
    """How this program was called, for a person who pastes it: by launch.sh, by its name where a shell finds it, or by its path."""
    if door is not None:
        return door
    is_path = Path(sys.argv[0]).name == "trainer" and shutil.which("trainer") != sys.argv[0]
    return sys.argv[0] if is_path else "trainer"


def _commands_of(error: Exception) -> list[str]:
    """The command, and the one within its group, to which a usage error belongs."""
    context = getattr(error, "ctx", None)
    names: list[str] = []
    while context is not None and context.parent is not None:
        context, names = context.parent, [context.info_name, *names]
    return names


def with_command(words: list[str], commands: list[str], *, is_launch_sh: bool) -> list[str]:
    """The words with the command that they leave out: those of a run alone mean `launch`.

    raises  ConfigError for a first word that is most likely a command with a typing mistake
    """
    from trainer.config.cluster import cluster_names
    from trainer.config.folders import command_line
    from trainer.config.load import recipe_names

    first = words[0] if words else ""
    if not first:
        return ["launch"] if is_launch_sh else []
    if first in (*commands, "-h", "--help"):
        return words
    names = [*cluster_names(), *recipe_names()]
    is_path = "/" in first or first.endswith((".yaml", ".yml"))
    is_of_a_run = first in names or is_path or "=" in first or first.startswith("-")
    if not is_of_a_run and (meant := nearest(first, [*commands, *names])) in commands:
        raise ConfigError(f"No such command {first!r}; did you mean {meant!r}? See: {command_line('--help')}")
    return ["launch", *words] if is_of_a_run or is_launch_sh else words


def _refuse(words: str, code: int = 2) -> None:
    say(f"error: {words}")
    sys.exit(code)
