"""A pretraining trainer on Hugging Face Accelerate that survives anything.

The house. An import may only go down a floor (on floor 6 also to the right); rooms on floor 3 never import each other, and what
one needs of another `run/` hands it. `tests/test_architecture.py` reads this plan and checks it.

    floor 6  __main__ cli session
    floor 5  loop evaluate finish tools dry_run
    floor 4  run supervise export report tensorboard runs
    floor 3  data model optim precision checkpoint metrics evaluation safety launch
    floor 2  config journal locks state determinism host_copy
    floor 1  aliases errors files lease start step_result streams text

Begin with loop.py: it is what all the rest serves.
"""

__version__ = "0.1.0"
