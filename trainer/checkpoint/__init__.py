"""Checkpoints: a folder that Accelerate loads, committed in one rename, verified before it is believed.

Five packages; each imports only those above it, and `tests/test_architecture.py` checks that.

format/      what stands on the disk
    manifest.py       what a checkpoint says of itself, and a run for it: plain JSON with a digest of every file; pure
    store.py          the folder of a run's checkpoints: stage, commit, list, verify, set aside, prune
    retention.py      which checkpoints are kept, and why, and what a bound on bytes removes; pure
    verified.py       what the last verifications found, remembered
    verified_copy.py  the one way to copy a checkpoint's files
    layout.py         how the state lies in files: the seam for a third way (one part per rank), chosen in run/build.py
    whole_files.py    rank 0 has all weights and moments; gathered_files.py: the same files of a model of which each rank holds a part
    memory_layout.py  these files in memory, byte for byte; file_layout.py: each of them
    by_name.py        moments by the names of their parameters, whatever the groups are now
    finite.py         whether all numbers in such memory are finite; tensor_names.py: their tensors by name
    carried.py        files of the model that a run began from, and of its tokenizer, which each of its checkpoints keeps
    random_states.py  the random streams of one rank, as plain JSON
    tensors.py        which tensors of two safetensors files differ, without torch

context.py   what saving and restoring one run have in common

resume/      resuming
    select.py         latest, best, a step or a path -> the sound checkpoint to continue from, each refusal logged
    lookup.py         the checkpoints that a person means
    source.py         what model.init_from means: a folder, a model of the hub, or a run's checkpoint
    crash_loops.py    which checkpoints starts die from again and again, by the journal; pure
    diverged.py       what a run that diverged sets aside
    changes.py        what differs between a checkpoint and the run that goes on from it: refused, to be allowed, or logged; pure
    lock.py           one writer a folder, and waiting for the one that the last launch left, as long as it moves
    restore.py        loading a checkpoint, without executing anything from it
mirror/      verified copies elsewhere
    places.py         a folder of another disk or an object store; the only user of fsspec
    transfer.py       copies to such a place and back
    worker.py         copies made beside the saves
    fetch.py          the way back; duplicate.py: one copy in another folder
inspect/     listing.py, show.py, pin.py, remove.py: what a person does with checkpoints

commit.py    from a written staging folder to a committed checkpoint, and what follows; in the writer and in a save that waits

save/        saving
    checkpointer.py   when to save and how, on every rank; main_rank.py: what rank 0 alone does for it
    schedule.py       when a snapshot and when a write is due, by budget and measured costs; no clock of its own
    snapshot.py       one copy of weights and moments into shared memory; gathering.py: what all ranks do for one of a sharded model
    writer_client.py  the trainer's side of the writer; protocol.py: what the two say to each other
    writer.py         the process that writes, hashes and commits, and outlives the trainer; no torch
    blocking.py       a save that training waits for
    status.py         what came of the saves: counted, logged, reported
    room.py           what a run's checkpoints take, on the disk and in memory
    preflight.py      whether the disk can take the checkpoints: proved at the start
    forecast.py       what the saves to come will write, and when the disk will be full; pure

ranks.py     what the ranks tell each other
"""
