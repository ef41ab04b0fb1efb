"""Tells a person what happens to a run: kinds.py (of what), outbox.py (how often), targets.py (how), watch.py (beside the training).

It reads the run's journal, so whoever writes an event there need not know of it: a row of kinds.py makes one an alert.
"""
