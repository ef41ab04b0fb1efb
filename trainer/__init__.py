"""A pretraining trainer on Hugging Face Accelerate that survives anything.

The layers. An import may only go down a layer (on layer 6 also to the right). Packages on layer 3 never import each other, but for
evaluation, which reads its tasks through data; what one needs of another `run/` hands it, and plain data that several agree on stands
in contracts.py. `tests/test_architecture.py` reads this map and checks it.

    layer 6  __main__ cli session
    layer 5  loop evaluate finish tools dry_run
    layer 4  run launcher launcher_child export generation report tensorboard runs
    layer 3  data model optim precision checkpoint metrics evaluation safety launch
    layer 2  config ending journal locks replay state determinism host_copy parallel collectives
    layer 1  aliases contracts errors files lease start step_result streams text

Begin with loop.py: it is what all the rest serves. How work goes through the files:

    launch    cli/run.py -> launcher.py (checks, waits) -> launcher_child.py (`accelerate launch`)
              -> in each process session.py -> run/build.py -> loop.py
    step      loop.py -> data/loader.py -> model/ -> optim/ -> run/consensus.py (what the ranks agree on) -> metrics/reporter.py
    save      checkpoint/save/schedule.py (when) -> checkpoint/save/snapshot.py (into shared memory) -> checkpoint/save/writer.py
              (its own process) -> checkpoint/format/store.py (a folder) -> checkpoint/commit.py -> checkpoint/mirror/worker.py
    resume    checkpoint/resume/select.py (a sound one) -> checkpoint/resume/restore.py -> loop.py; replay.py compares the steps

Where new things go (more in guides/contributing.md):

    sharded snapshot   a second layout of checkpoint/format/layout.py (today's is checkpoint/format/whole_files.py), chosen in
                       checkpoint/context.py; checkpoint/save/checkpointer.py, checkpoint/save/main_rank.py and what it owns
                       (snapshot, writer, room are rank 0's today); export.py, evaluate.py and tools/selftest/evidence.py open
                       the file of the weights themselves
    hang watchdog      session.py (where a rank's threads start; nothing beats per step today), launcher.py (the parent, which waits
                       without a limit), launch/process_group.py (how long ranks wait for each other), ending/causes.py
    data mixture       config/schema.py, data/corpus.py, data/order.py (which sequence stands where; it holds no state),
                       data/loader.py; what a resume must notice: data/shards.py (fingerprints), run/identity.py,
                       checkpoint/resume/changes.py
    optimizer          optim/adamw.py is the example; one line in config/optimizers.py
    alert              metrics/slow_alarm.py is the example, made in run/reporting.py and called in metrics/reporter.py; what ends
                       a run is a vote: safety/guard.py
"""

__version__ = "0.1.0"
