"""A pretraining trainer on Hugging Face Accelerate that survives anything.

The layers. An import may only go down a layer (on layer 6 also to the right). Packages on layer 3 never import each other, but for
evaluation, which reads its tasks through data; what one needs of another `run/` hands it, and plain data that several agree on stands
in contracts.py. `tests/test_architecture.py` reads this map and checks it.

    layer 6  __main__ cli session
    layer 5  loop evaluate finish fork tools dry_run supervise
    layer 4  run launcher launcher_child export generation report history tensorboard runs ask
    layer 3  data model optim precision checkpoint metrics evaluation safety launch hub_settings restart alerts
    layer 2  config ending hub journal locks plugins pretrained replay state determinism host_checks host_copy parallel tensor_parts collectives plots
    layer 1  aliases beats byte_level contracts errors experts files gpus lease model_files safetensors_header start step_result streams text

Begin with loop.py: it is what all the rest serves. How work goes through the files:

    launch    cli/run.py -> supervise.py (starts it again, by the table of restart/decide.py) -> launcher.py (checks, waits) -> launcher_child.py (`accelerate launch`)
              (before it: hub_settings.py -> hub.py, which gives each `hf:NAME` its commit, once in the life of a run)
              -> in each process session.py -> run/build.py -> run/begin.py (run/health.py tries a step that leaves nothing) -> loop.py
    step      loop.py -> data/loader.py -> model/ -> optim/ -> run/consensus.py (what the ranks agree on) -> metrics/reporter.py
    save      checkpoint/save/schedule.py (when) -> checkpoint/save/snapshot.py (into shared memory) -> checkpoint/save/writer.py
              (its own process) -> checkpoint/format/store.py (a folder) -> checkpoint/commit.py -> checkpoint/mirror/worker.py
    resume    checkpoint/resume/select.py (a sound one) -> checkpoint/resume/restore.py -> loop.py; replay.py compares the steps

Where new things go (more in guides/contributing.md):

    sharded snapshot   a third layout of checkpoint/format/layout.py (whole_files.py; gathered_files.py, which gathers a sharded model for the same
                       files; memory_layout.py for them in a slot), chosen in run/build.py; save/gathering.py has all ranks take part in a
                       snapshot, save/blocking.py writes on every rank. In the background checkpoint/save/ is rank 0's: checkpointer.py
                       makes main_rank.py and room.py, writer_client.py the slots, and writer.py commits, also after the trainer's death:
                       with a writer per rank somebody must know that all parts of one step are whole before commit.py renames; what opens
                       the file of the weights: export.py, evaluate.py, tools/selftest/evidence.py
    sharded model      parallel.py (Sharded), launch/accelerator.py (its plugin), launch/environment.py (Sharding), config/fsdp_keys.py; what
                       reads its tensors: tensor_parts.py; what must take as many passes on every rank as on the others: whatever calls the
                       model (evaluation/, session.py); what says that ranks hold nothing twice: run/compare_digests.py
    what ends a hang   beats.py (what a rank says), safety/hang_watch.py (what is a hang), safety/hang.py (what is done); a phase of its own that a
                       rank may be long in: reporter.pause or beats.phase, its limit in hang_watch.LIMITS
    several machines   config/cluster.py (PLACES: who a machine is), launcher.py (`decides`: the first one), supervise.py (`follow`: the others)
    kind of end        ending/causes.py, and a row of restart/decide.py, which the guide `unattended` shows; its facts: restart/ends.py
    data mixture       config/schema.py, data/corpus.py, data/order.py (which sequence stands where; it holds no state),
                       data/loader.py; what a resume must notice goes into the fingerprint: data/shards.py, run/identity.py,
                       checkpoint/resume/changes.py; what an epoch is: data/loader.py (epoch_at), run/build.py (_course),
                       config/length.py, dry_run.py, tools/plan/known.py; who else reads data.corpus: evaluate.py, tools/compare/runs.py, cli/run.py;
                       who else opens a corpus: launcher.py (check_data), cli/machine.py
    family, GPU        model/families.py, by which tools/plan counts without torch (others are built); gpus.py
    optimizer          optim/adamw.py is the example: its ENTRY holds settings, groups, construction and bytes of state; its module's
                       name in config/optimizers.py is the one line; the step reads optim/found_inf.py, or the host waits for it and the
                       preflight (run/health.py) cannot try it
    alert              an event of journal.py, a row of alerts/kinds.py (who is told, and of which kind: config/unattended.py) and of
                       history/words.py; alerts/ sends it, from the process of supervise.py. What watches the steps for it:
                       metrics/slow_alarm.py is the example (log and journal, on rank 0), made in run/reporting.py, called and closed in
                       metrics/reporter.py; its event in guides/monitoring.md, its curve in metrics/tags.py; what ends a run is a vote: safety/guard.py
"""

__version__ = "0.1.0"
