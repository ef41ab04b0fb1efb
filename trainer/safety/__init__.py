"""What ends or steers a run from outside or from its own numbers.

stop.py      signals become a wish that all ranks grant at the same step
guard.py     losses that are no numbers
failures.py  why a run ended, from the rank where it began to whoever has to say it
parent.py    a process that ends when the one that started it does
"""
