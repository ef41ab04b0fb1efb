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
                       files; memory_layout.py for them in a slot), chosen in run/build.py. save/gathering.py has all ranks take part in a
                       snapshot, save/blocking.py writes on every rank. In the background checkpoint/save/ is rank 0's: checkpointer.py
                       makes main_rank.py and room.py, writer_client.py the slots, and writer.py commits, also after the trainer's death:
                       with a writer per rank somebody must know that all parts of one step are whole before commit.py renames, and the next start must
                       wait for every writer: checkpoint/resume/lock.py and lease.py know one heir of the folder's lock.
                       What opens the file of the weights by its name: export.py, evaluate.py, tools/selftest/evidence.py,
                       checkpoint/inspect/show.py, checkpoint/resume/source.py, model/pretrained.py. What counts a snapshot as the whole model on
                       rank 0: checkpoint/save/room.py, tools/plan/memory.py, tools/plan/storage.py. Another number of ranks is only told
                       (resume/changes.py): a layout must load with any
    sharded model      parallel.py (Sharded), launch/accelerator.py (its plugin), launch/environment.py (Sharding); what a cluster file may say:
                       config/fsdp_keys.py, config/cluster_keys.py, config/cluster.py. What reads its tensors, by tensor_parts.py: metrics/probes.py,
                       optim/; what would judge by this rank's part asks the others: run/verdict.py. What must take as many passes on every rank as on the others: whatever calls the model
                       (evaluation/, session.py, run/health.py). What says that ranks hold nothing twice: run/compare_digests.py; that their
                       bits are others: run/identity.py; whether it fits: run/memory.py
    what ends a hang   beats.py (what a rank says; a phase has 15 letters at most), safety/hang_watch.py (what is a hang), safety/hang.py (what is
                       done). A phase of its own that a rank may be long in: reporter.pause or beats.phase, its limit in hang_watch.LIMITS by the
                       same word, and its part in PARTS and RARE of metrics/stopwatch.py, or it counts as the step's time; where other ranks
                       wait for it, launch/process_group.py (GROUP_TIMEOUT) and checkpoint/ranks.py (TIMEOUT) end sooner. The writer is no rank: save/writer_client.py (HUNG_SECONDS)
    several machines   config/cluster.py (PLACES: who a machine is), launcher.py (`decides`: the first one), supervise.py (`follow`: the others)
    kind of end        ending/causes.py, and a row of restart/decide.py, which the guide `unattended` shows; its facts: restart/ends.py
    data mixture       config/schema.py, data/corpus.py, data/order.py (which sequence stands where; it holds no state, and is in no fingerprint:
                       for one source it stays as it is, bit for bit), data/loader.py (a batch's digest, and the journal, hold sequences by
                       number: one number for one sequence of all sources). What a resume must notice goes into the fingerprint: data/shards.py,
                       run/identity.py, checkpoint/resume/changes.py. What an epoch is: data/loader.py (epoch_at), run/build.py (_course),
                       config/length.py, dry_run.py, tools/plan/known.py, metrics/tags.py. Who else reads data.corpus: evaluate.py,
                       tools/compare/runs.py, cli/run.py; who asks whether there is validation: run/reporting.py, tools/plan/plan.py; who else
                       opens a corpus: launcher.py (check_data), cli/machine.py
    family, GPU        model/families.py, by which tools/plan counts without torch (others are built); gpus.py
    optimizer          optim/adamw.py is the example: its ENTRY holds settings, groups, construction and bytes of state; its module's
                       name in config/optimizers.py is the one line. All settings of all optimizers are one flat section, so one's own is called
                       after it (`lion_betas`: `betas` would change AdamW's). Its hyperparameters name the `algorithm`, by which
                       checkpoint/save/room.py and tools/plan/memory.py count; products of its own: tools/plan/pace.py. The step reads
                       optim/found_inf.py, or the host waits for it and the preflight (run/health.py) cannot try it; of a sharded model it
                       takes its tensors by tensor_parts.own, as muon_with_adamw.py does
    alert              that steps are slow, and twelve things more, are alerts by now: guides/alerts.md. Another one is an event of journal.py
                       (guides/monitoring.md lists them), a row of alerts/kinds.py, its words in history/words.py, and where the report keeps it
                       history/ledger.py (KEPT). A new kind: AlertKind in config/unattended.py, guides/alerts.md, outbox.AT_ONCE where it must
                       not wait. alerts/ sends, from the process of supervise.py, what targets.py can reach; a secret leaves the settings in
                       config/secrets.py, since a config is written everywhere. What watches the steps: metrics/slow_alarm.py is the example
                       (on rank 0, made in run/reporting.py, called and closed in metrics/reporter.py, its curve in metrics/tags.py). What ends
                       a run is no alert, it is a vote: safety/guard.py
"""

__version__ = "0.1.0"
