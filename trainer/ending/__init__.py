"""How a run ended, and why: one set of outcomes, one set of causes, and the ways by which they travel.

outcomes.py      how a run ended: finished, interrupted, diverged, failed, refused; the exit code of each
causes.py        why one process ended: the classifier of exceptions and signals
outcome_file.py  outcome.json in runs/NAME, for people and for the parent of a launch
ranks.py         a rank that fails leaves its reason for the other ranks, which take a broken connection for that reason
launcher.py      a launcher reports to `trainer launch` which process failed first

The journal (journal.py) keeps the cause of every process, from which crash loops are found (checkpoint/resume/crash_loops.py).
"""
