"""The hall: a config becomes a run, and the run is brought to where it stands.

build.py      everything a run needs, built in one readable order and held in one frozen dataclass, `Run`
identity.py   the facts by which a run, a replay and a launch are known again
begin.py      where it continues from: found, warmed up, restored, and told
"""
