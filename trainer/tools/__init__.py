"""Programs beside training: they look at runs and machines, or launch trial runs of their own; training imports none of them.

compare/    is one run as good as another, with bands of noise
doctor/     what this machine can do about precision, and TransformerEngine installed where a launch needs it
bench/      the user's run, timed in bf16 and in each fp8 recipe that this machine has
selftest/   a run that is killed and resumed, compared bit for bit with one that never was
plan/       what a run would take, before anything is started
trial/      launches in folders of their own: what bench and selftest have in common
"""
