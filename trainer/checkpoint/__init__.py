"""Checkpoints: a folder that Accelerate loads, committed in one rename, verified before it is believed.

manifest.py       what a checkpoint says of itself: plain JSON with a digest of every file; pure
retention.py      which checkpoints are kept, and why, and what a bound on bytes removes; pure
verified.py       what the last verifications found, remembered
store.py          the folder of a run's checkpoints: stage, commit, list, verify, set aside, prune
resume.py         latest, best, a step or a path -> the sound checkpoint to continue from, each refusal told
random_states.py  the random streams of one rank, as plain JSON
choose.py         the checkpoints that a person means; listing.py, show.py, pin.py, duplicate.py: what one does with them
tensors.py        which tensors of two safetensors files differ, without torch
checkpointer.py   when to save, what to save, and how to load it back without executing anything
"""
