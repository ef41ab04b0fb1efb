"""The proof on the user's own machine: a run that is killed and resumed is compared, bit for bit, with one that never was.

choose.py      how many steps and kills fit the time, and at which moments to kill; pure
evidence.py    what the runs left: where each start came back, and the first differences; pure but for reading
result.py      what it came to, for a person and for a program
conduct.py     the whole test, from the words that were typed to a Result
"""
