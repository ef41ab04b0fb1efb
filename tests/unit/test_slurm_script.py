"""The script for sbatch, under stand-ins of Slurm's commands: srun sets the variables of each task, as Slurm's does."""

import json
import os
import re
import subprocess

import pytest

from tests.commands import trainer
from trainer.config.cluster import read_cluster

SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift || exit 64
worst=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@"; code=$?
  [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/bin/bash
case "$1" in
  show) printf 'gpu-07\\ngpu-08\\n' | head -n "$NODES_KNOWN" ;;
  requeue) echo "$2" >> requeued ;;
esac
"""
LAUNCH = """#!/bin/bash
echo "$NODE_RANK/$NNODES $MASTER_ADDR:$MASTER_PORT $*" >> launched
exit "$LAUNCH_CODE"
"""
VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def job(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("launch.sh", LAUNCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "mine.sbatch").write_text(trainer("guide", "slurm", "--script").out)
    (tmp_path / "runs" / "mine").mkdir(parents=True)

    def submit(code, *events, nodes_known=2):
        journal = "".join(json.dumps({"time": "t", **event}) + "\n" for event in events)
        (tmp_path / "runs" / "mine" / "journal.jsonl").write_text(journal)
        slurm = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_ID": 41234, "SLURM_JOB_NUM_NODES": 2}
        given = {**slurm, "SLURM_JOB_NODELIST": "gpu-[07-08]", "LAUNCH_CODE": code, "NODES_KNOWN": nodes_known}
        variables = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        variables |= {name: str(value) for name, value in given.items()}
        variables["PATH"] = f"{tmp_path}{os.pathsep}{variables['PATH']}"
        done = subprocess.run(["bash", "mine.sbatch"], cwd=tmp_path, env=variables, capture_output=True, text=True)
        requeued = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else ""
        return done.returncode, requeued.split()

    return submit


LAUNCHED, STOPPED = {"event": "launch"}, {"event": "request", "do": "stop"}
SAVED = {"event": "request", "do": "save"}


def test_each_node_has_a_launch_that_knows_its_place(job, tmp_path):
    assert job(0, LAUNCHED) == (0, [])
    words = "launch multinode_ddp_bf16 mine.yaml restart.enabled=true"
    assert (tmp_path / "launched").read_text().splitlines() == [f"{node}/2 gpu-07:21234 {words}" for node in (0, 1)]


@pytest.mark.parametrize(
    ("code", "events", "requeued"),
    [
        (75, [LAUNCHED], True),
        (75, [LAUNCHED, SAVED], True),
        (75, [LAUNCHED, STOPPED, LAUNCHED], True),
        (75, [LAUNCHED, STOPPED], False),
        (75, [LAUNCHED, STOPPED, SAVED], False),
        (75, [], True),
        (0, [LAUNCHED], False),
        (1, [LAUNCHED], False),
        (3, [LAUNCHED], False),
    ],
)
def test_an_interrupted_job_is_queued_again_unless_a_person_stopped_the_run(job, code, events, requeued):
    assert job(code, *events) == (code, ["41234"] if requeued else [])


def test_without_a_node_by_name_nothing_is_launched(job, tmp_path):
    assert job(0, nodes_known=0) == (2, [])
    assert not (tmp_path / "launched").exists()


def test_the_script_asks_slurm_for_what_the_cluster_file_says():
    script = trainer("guide", "slurm", "--script").out
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    cluster = read_cluster(re.search(r"^CLUSTER=(\S+)$", script, re.MULTILINE)[1])
    assert (int(asked["nodes"]), int(asked["gpus-per-node"])) == (cluster.num_machines, cluster.num_local_processes)
    assert asked["ntasks-per-node"] == "1" and re.search(r"^#SBATCH --requeue$", script, re.MULTILINE)
