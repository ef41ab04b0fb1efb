"""Verified copies of committed checkpoints on another disk or in an object store, and the way back."""
