"""Arguments and options that several commands take, each with one form and one explanation."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer


def with_options(command: Callable[[str, Any], None]) -> Callable[..., None]:
    """A command for typer of a function of a run and a dataclass: the fields of that are the command's options."""
    run, options = inspect.signature(command).parameters.values()
    parameters = [run, *inspect.signature(options.annotation).parameters.values()]

    def called(run: str, **given: Any) -> None:
        command(run, options.annotation(**given))

    called.__doc__ = command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(called)["__signature__"] = inspect.Signature(parameters)  # what typer reads
    return called


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, its folder of checkpoints, or one checkpoint's.")
]
NameArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder in runs/.")]
LaunchArgument = Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="STEP", help="A step, latest, best, or the path of a checkpoint.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
