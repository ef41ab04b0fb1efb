"""Checkpoints: a folder that Accelerate loads, committed in one rename, verified before it is believed.

what stands on the disk
    manifest.py       what a checkpoint says of itself: plain JSON with a digest of every file; pure
    description.py    what a run says of itself, for manifests and to be compared with one
    store.py          the folder of a run's checkpoints: stage, commit, list, verify, set aside, prune
    retention.py      which checkpoints are kept, and why, and what a bound on bytes removes; pure
    lock.py           one writer a folder, and waiting for the one that the last launch left, as long as it moves
    verified.py       what the last verifications found, remembered
saving
    checkpointer.py   when to save and how, on every rank
    cadence.py        when a snapshot and when a write is due, by budget and measured costs; no clock of its own
    image.py          a checkpoint's files laid out in memory, byte for byte
    snapshot.py       one copy of weights and moments into such memory
    background.py     the trainer's side of the writer; channel.py: what the two say to each other
    writer.py         the process that writes, hashes, commits, prunes, and outlives the trainer; no torch
    plain.py          a save that training waits for
    told.py           which of the many the log tells of
    random_states.py  the random streams of one rank, as plain JSON
    ranks.py          what the ranks tell each other
    room.py           what a run's checkpoints take, on the disk and in memory
    copier.py         copies to a second place, beside the saves
    disk.py           whether the disk can take the checkpoints: proved at the start
    forecast.py       what the saves to come will write, and when the disk will be full; pure
    second_place.py   verified copies on another disk or in an object store, and the way back; the only user of fsspec
going on
    resume.py         latest, best, a step or a path -> the sound checkpoint to continue from, each refusal told
    suspects.py       which checkpoints starts die from again and again, by the journal; pure
    changes.py        what differs between a checkpoint and the run that goes on from it: refused, to be allowed, or told; pure
    restore.py        loading it, without executing anything from it
for a person
    choose.py         the checkpoints that a person means; listing.py, show.py, pin.py, duplicate.py, fetch.py: what one does with
                    them
    tensors.py        which tensors of two safetensors files differ, without torch
"""
