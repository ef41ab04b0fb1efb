"""What a model is asked while it is trained and after: held-out loss, tasks, and samples of text.

schedule.py        at which steps it is evaluated
loss.py            the loss over held-out sequences, the same for any number of processes
tasks.py           tasks by name or from files; items.py: a row of any form as an item; next_lines.py: the built-in task
task_evaluator.py  tasks put to a model: scoring.py adds up log-likelihoods, accuracy.py decides
generate.py        tokens drawn after prompts; samples.py: the texts that a run shows of itself
"""
