"""Launches beside the user's run, that try something out on this machine: what `selftest` and `bench` have in common.

sandbox.py     where they take place, and what an attempt that was killed left there
tracked.py     a launch that is watched from outside, and killed or seen through
"""
