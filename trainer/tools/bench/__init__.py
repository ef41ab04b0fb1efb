"""Measure before believing: the run's own model, shape and processes, timed in bf16 and in each fp8 recipe that this machine has.

choose.py      what is measured, what is not and why, and the settings of the launches; pure
survey.py      what this machine can do, asked in a process of its own
measure.py     what the launches of one variant left, as figures; pure
judge.py       what is a gain and what is recommended; pure
result.py      the table, for a person and for a program
conduct.py     the whole measurement, from the words that were typed to a Result
"""
