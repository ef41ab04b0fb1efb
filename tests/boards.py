"""What TensorBoard reads of a run."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0}


def events_of(recipe: Path, name: str = "tiny") -> EventAccumulator:
    """Every event of a run, none left out for brevity."""
    events = EventAccumulator(str(recipe.parent / "runs" / name), size_guidance=EVERYTHING)
    events.Reload()
    return events
