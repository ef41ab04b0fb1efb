"""An optimizer's state dict by the names of parameters: torch's own is by their numbers, which change with the groups.

Each group of a checkpoint states the names of its parameters (`param_names`, torch's own key). Earlier versions trained every parameter,
and stated none: what stood in which of their groups, and in which order, follows from the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import CheckpointError

Former = Mapping[str, Sequence[str]]
"""Name of a group -> names of its parameters, of an optimizer's file that states none."""


def by_present_numbers(
    saved: Mapping[str, Any], present: Mapping[str, Any], names: Mapping[int, str], former: Former
) -> dict[str, Any]:
    """A saved state dict as the present optimizer loads it: each parameter's moments under its number of today, and groups as they are today.

    What has no moments in it begins without any. Moments are left out whose parameter is not trained any more, or by another algorithm.

    saved, present   state dicts of a torch optimizer
    names            of the present parameters, by number
    raises           CheckpointError where whose moments the saved ones are is not known
    """
    owners = _owners(saved, present, names, former)
    owner = {number: (name, group.get("algorithm")) for group, own in owners for number, name in own.items()}
    wanted = {
        (names[number], group.get("algorithm")): number
        for group in present["param_groups"]
        for number in group["params"]
    }
    # In the saved order, in which they are saved again: a resumed run's file is that of the run never stopped, byte for byte.
    state = {
        wanted[owner[number]]: moments for number, moments in saved["state"].items() if owner.get(number) in wanted
    }
    return {"state": state, "param_groups": present["param_groups"]}


def _owners(
    saved: Mapping[str, Any], present: Mapping[str, Any], names: Mapping[int, str], former: Former
) -> list[tuple[Mapping[str, Any], dict[int, str]]]:
    """Each saved group with the names of its parameters by their numbers."""
    groups = saved["param_groups"]
    stated = [group.get("param_names") or former.get(group.get("name", "")) for group in groups]
    if None in stated and _sizes(saved) == _sizes(present):  # an optimizer without names, in today's order
        stated = [[names[number] for number in group["params"]] for group in present["param_groups"]]
    if any(own is None or len(own) != len(group["params"]) for group, own in zip(groups, stated, strict=True)):
        found = ", ".join(f"{group.get('name')} ({len(group['params'])})" for group in groups)
        wanted = ", ".join(f"{name} ({len(own)})" for name, own in former.items())
        raise CheckpointError(
            f"the checkpoint's optimizer has the parameter groups {found}, which do not say whose moments they hold, and this model's would be "
            f"{wanted}; resume with the settings and the version that wrote it, or start a new run: name=..."
        )
    return [
        (group, dict(zip(group["params"], own, strict=True))) for group, own in zip(groups, stated, strict=True) if own
    ]


def _sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]
