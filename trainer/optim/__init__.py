"""Optimizers, their parameter groups, and the learning rate.

config/optimizers.py   what an entry says, and the registry: one line for each optimizer
adamw.py, muon.py      the entries: settings, groups, how it is built, bytes of state; they import torch inside functions only
muon_with_adamw.py     the algorithm of muon, as one optimizer of torch
groups.py              which parameter is in which named group, and the group's hyperparameters
rules.py               which entry of `optimizer.groups` a parameter follows, what is frozen, and what is said of it
build.py               from the settings to torch's optimizer; the step that is skipped where the gradient is not finite
found_inf.py           lets an optimizer skip its step on the device where the gradient is not finite
schedule.py            the learning rate as a pure function of the step
"""
