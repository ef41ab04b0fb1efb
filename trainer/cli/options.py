"""Arguments and options that several commands take, each with one form and one explanation."""

from typing import Annotated

import typer

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, its folder of checkpoints, or one checkpoint's.")
]
NameArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder in runs/.")]
LaunchArgument = Annotated[list[str] | None, typer.Argument(metavar="[CLUSTER] [RECIPE] [KEY=VALUE]...")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="STEP", help="A step, latest, best, or the path of a checkpoint.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
