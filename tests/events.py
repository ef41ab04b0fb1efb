"""What TensorBoard reads of a run's event files."""

from collections import Counter

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0}


def events_of(recipe, name="tiny"):
    """Every event of a run, none left out for brevity."""
    events = EventAccumulator(str(recipe.parent / "runs" / name), size_guidance=EVERYTHING)
    events.Reload()
    return events


def drawn_twice(events):
    """(tag, step) that stand there more than once."""
    tags = events.Tags()
    points = [
        (tag, event.step)
        for kind, read in (("scalars", events.Scalars), ("histograms", events.Histograms), ("tensors", events.Tensors))
        for tag in tags[kind]
        for event in read(tag)
    ]
    return [point for point, number in Counter(points).items() if number > 1]
