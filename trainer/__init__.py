"""A pretraining trainer on Hugging Face Accelerate that survives anything.

The layers. An import may only go down a layer (on layer 6 also to the right). Packages on layer 3 never import each other, but for
evaluation, which reads its tasks through data; what one needs of another `run/` hands it, and plain data that several agree on stands
in contracts.py. `tests/test_architecture.py` reads this map and checks it.

    layer 6  __main__ cli session
    layer 5  loop evaluate finish tools dry_run
    layer 4  run supervise export generation report tensorboard runs
    layer 3  data model optim precision checkpoint metrics evaluation safety launch
    layer 2  config ending journal locks replay state determinism host_copy
    layer 1  aliases contracts errors files lease start step_result streams text

Begin with loop.py: it is what all the rest serves.
"""

__version__ = "0.1.0"
