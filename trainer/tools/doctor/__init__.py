"""What this machine can do about precision, before any launch; and TransformerEngine, installed where a launch needs it.

machine.py     what is known without torch: Python, driver, GPUs
examine.py     a process of its own: what torch, TransformerEngine and a small layer say; a launch's decision, by the launch's own functions
ask.py         starts such processes, and outlives them
diagnosis.py   the answers as one result with an exit code
show.py        the result for a person
install.py     pip, in words, with a log, and not again and again
"""
