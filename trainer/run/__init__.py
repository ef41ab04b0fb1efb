"""A config becomes a run, and the run is brought to where it stands.

build.py      everything a run needs, built in one readable order and held in one frozen dataclass, `Run`
join.py       the other processes, and the precision that all compute in
prepared.py   model and optimizer, built and prepared; memory.py: whether this machine can hold them
initial.py    where the weights begin that are not random; own_tokenizer.py: whether the data were made with that model's tokenizer
evaluating.py its validation loss, samples and tasks; reporting.py: its reporter and probes
experts.py    what the routers of a model with experts do in its steps
identity.py   the facts by which a run, a replay and a launch are known again
consensus.py  what the ranks agree on after each step: its result, the same on every rank
recheck.py    the batch of a skipped step, computed once more
verdict.py    whether the run ends at a step and how, and whether the step is saved
begin.py      where it continues from: found, warmed up, restored, and told
out_of_memory.py  what is left behind when a GPU or the machine runs out of memory
"""
