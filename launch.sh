#!/usr/bin/env bash
# Sets up what is missing, then trains:
#   ./launch.sh                                      the Shakespeare run on this machine
#   ./launch.sh CLUSTER RECIPE [key=value ...]       any cluster file and recipe, e.g. ./launch.sh 4gpu_bf16 gpt2-124m optimizer.lr=6e-4
#   ./launch.sh selftest [CLUSTER] RECIPE [...]      kills a short run of it, resumes it, and compares: is a resume exact on this machine?
#   ./launch.sh bench precision [CLUSTER] RECIPE     times it in bf16 and in each fp8 recipe: which is worth taking on this machine?
#   ./launch.sh tensorboard [RUN] [--port N]         opens TensorBoard, and says how to reach it from another machine
#   ./launch.sh doctor [CLUSTER] [RECIPE] [...]      what this machine can compute in (bf16, fp8 ...), and what a launch would decide
#   ./launch.sh --setup [EXTRA]                      only the environment, with an extra of setup.cfg (test, fp8)
# Called again it continues, or says that the run is finished. The exit code is the run's own: 0 finished, 2 something to mend in
# what was typed, 3 diverged, 75 interrupted (start it again to continue), 1 anything else.
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

find_python() {
    local candidates="${PYTHON:-python3 python3.13 python3.12 python3.11}"
    for candidate in $candidates; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python of version 3.11 or newer with the modules venv and ensurepip was found (tried: $candidates); install one" \
        "(on Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 ./launch.sh" >&2
    exit 2
}

# Makes .venv and installs the package into it, unless that was done for the setup.cfg that is here now; needs the network only then.
set_up() {
    local extra="${1:-}" wanted stamp
    if [ ! -x "$project/.venv/bin/python" ]; then
        local python
        python="$(find_python)" || exit 2
        echo "setting up: making .venv" >&2
        if ! "$python" -m venv "$project/.venv"; then
            rm -rf "$project/.venv"
            echo "error: .venv could not be made with $python (its words are above); check the free disk space and the rights on $project," \
                "or name another Python: PYTHON=/path/to/python3 ./launch.sh" >&2
            exit 2
        fi
    fi
    stamp="$project/.venv/.installed${extra:+-$extra}"
    wanted="$(cat "$project/setup.cfg" "$project/pyproject.toml" | cksum) $project"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "setting up: installing the packages of setup.cfg into .venv (once; some minutes)" >&2
        if ! (cd "$project" && .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}"); then
            echo "error: the packages could not be installed (pip's words are above); check the network and the free disk space, then start again" >&2
            exit 2
        fi
        echo "$wanted" > "$stamp"
        echo "$wanted" > "$project/.venv/.installed"  # with an extra, the packages without it are there too
    fi
}

if [ "${1:-}" = "--setup" ] && [ "${2:-}" = "fp8" ]; then
    set_up
    exec "$project/.venv/bin/python" -m trainer install-fp8  # which is compiled, against the torch that is there now
fi
if [ "${1:-}" = "--setup" ]; then
    set_up "${2:-}"
    exit 0
fi
set_up
command=launch
case "${1:-}" in
    bench | doctor | selftest | tensorboard)
        command="$1"
        shift
        ;;
esac
exec "$project/.venv/bin/python" -m trainer "$command" "$@"
