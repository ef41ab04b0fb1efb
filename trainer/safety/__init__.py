"""What ends or steers a run from outside or from its own numbers: signals (stop.py) and losses that are no numbers (guard.py)."""
