"""How a run ended, and why: one set of outcomes, one set of causes, and the ways by which they travel.

outcomes.py      how a run ended: finished, interrupted, diverged, failed, refused; the exit code of each
causes.py        why one process ended: the classifier of exceptions and signals
outcome_file.py  outcome.json in runs/NAME, for people and for the parent of a launch
ranks.py         a rank that fails tells the other ranks why, and a connection that breaks becomes that rank's reason
launcher.py      a launcher tells `trainer launch` which process failed first

The journal (journal.py) keeps the cause of every process, which tells crash loops (checkpoint/resume/crash_loops.py).
"""
