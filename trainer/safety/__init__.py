"""What ends or steers a run from outside or from its own numbers.

forward.py   the signals of the process that a person started, passed on to the launcher and the ranks
requests.py  what people, signals and the clock ask of a run, which all ranks answer at the same step (request_file.py, time_limit.py)
stacks.py    what each process is doing, written by SIGUSR2
guard.py     losses and gradients that are not finite, and losses that have left for good
digests.py   whether all ranks hold the same weights and moments, to the last bit
rollback.py  which data a run steps over since it diverged on them, and how that is remembered
spikes.py    those that stand far above the ones before, judged on the device before the update
hang.py      what a launch does about ranks that make no progress; hang_watch.py: which those are
peers.py     a rank ends with the reason that another left, where the device would keep it waiting
parent.py    a process that ends when the one that started it does
"""
