#!/usr/bin/env bash
# Sets up what is missing, then trains, or does what a command says; -h lists every command:
#   ./launch.sh                                      the Shakespeare run on this machine
#   ./launch.sh CLUSTER RECIPE [key=value ...]       any cluster file and recipe, e.g. ./launch.sh 4gpu_bf16 gpt2-124m optimizer.lr=6e-4
#   ./launch.sh CLUSTER RECIPE [...] --dry-run       what that would run, and what would be refused
#   ./launch.sh selftest [CLUSTER] RECIPE [...]      kills a short run of it, resumes it, and compares: is a resume exact on this machine?
#   ./launch.sh bench precision [CLUSTER] RECIPE     times it in bf16 and in each fp8 recipe: which is worth taking on this machine?
#   ./launch.sh doctor [CLUSTER] [RECIPE] [...]      what this machine can compute in (bf16, fp8 ...), and what a launch would decide
#   ./launch.sh report | tensorboard | generate ...  every command of `trainer`; guide [NAME] shows the guides
#   ./launch.sh --setup [EXTRA]                      only the environment, with an extra of setup.cfg (test, fp8)
# Called again it continues, or says that the run is finished. The exit code is the run's own: 0 finished, 2 something to fix in
# what was typed, 3 diverged, 75 interrupted (start it again to continue), 1 anything else.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # called as: sh launch.sh
set -euo pipefail
# The folder of this file itself, also where it was called by a link to it. Python is told (-P) to import nothing from the current folder.
project="$(dirname "$(readlink -f -- "${BASH_SOURCE[0]}")")"
venv="$project/.venv"

refuse() {
    echo "error: $*" >&2
    exit 2
}

find_python() {
    local candidates="${PYTHON:-python3 python3.13 python3.12 python3.11}"
    for candidate in $candidates; do
        if "$candidate" -P -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    refuse "no Python of version 3.11 or newer with the modules venv and ensurepip was found (tried: $candidates); install one" \
        "(on Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 ./launch.sh"
}

# Makes .venv, and removes again what it has made where that fails; called where there is none, or an empty folder for it.
make_venv() {
    local python
    python="$(find_python)" || exit 2
    if mkdir "$venv" 2>/dev/null; then
        trap 'rm -rf "$venv"' EXIT
    else
        trap 'empty_venv' EXIT
    fi
    echo "setting up: making .venv" >&2
    "$python" -P -m venv "$venv" ||
        refuse "$venv could not be made with $python (its words are above); check the free disk space and the rights on $project," \
            "or name another Python: PYTHON=/path/to/python3 ./launch.sh"
    trap - EXIT
}

is_empty() {
    [ -d "$1" ] && [ -r "$1" ] && (cd "$1" && shopt -s dotglob nullglob && set -- * && [ $# -eq 0 ])
}

empty_venv() {
    (cd "$venv" && shopt -s dotglob nullglob && rm -rf -- *)
}

# What tells the Python of .venv from another, and whether the package is installed where that one looks: after an upgrade of the
# system's Python, .venv has packages that the new one does not see. Fails where it does not run.
look_at_python() {
    "$venv/bin/python" -P -c '
import glob, sys, sysconfig
place = sysconfig.get_path("purelib")
there = glob.glob(glob.escape(place) + "/accelerate_trainer-*.dist-info")
print(sysconfig.get_config_var("SOABI"), place, "with the package" if there else "without it")'
}

# Whether the package was installed for the setup.cfg that is here now, and for the Python that will run. Sets `stamp` and `wanted`.
is_set_up() {
    local seen
    stamp="$venv/.installed${1:+-$1}"
    seen="$(look_at_python 2>/dev/null)" || return 1
    wanted="$(cat "$project/setup.cfg" "$project/pyproject.toml" | cksum) $project $seen"
    [[ "$seen" = *"with the package" ]] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

# Makes .venv and installs the package into it, unless that was done; needs the network only then.
set_up() {
    local extra="${1:-}" stamp wanted
    if is_set_up "$extra"; then
        return
    fi
    # One call at a time from here on, where there is flock and the disk knows locks.
    exec 9< "$project/setup.cfg"
    flock -n 9 2>/dev/null || { [ $? -eq 1 ] && echo "setting up: waiting for another ./launch.sh that does" >&2 && flock 9; } || true
    if { [ ! -e "$venv" ] && [ ! -L "$venv" ]; } || is_empty "$venv"; then
        make_venv
    fi
    look_at_python >/dev/null ||
        refuse "$venv is there, and its Python ($venv/bin/python) does not run for this user (the reason is above); it is left as it is." \
            "Where somebody else uses it, ask for the rights on that Python, or train in a clone of your own; where nobody does, since it" \
            "was left half made or its Python is gone, remove it (rm -rf $(printf %q "$venv")), and start again"
    if ! is_set_up "$extra"; then
        install "$extra"
        is_set_up "$extra" || refuse "pip has installed the packages, and $venv/bin/python does not find them; remove .venv, and start again"
    fi
    exec 9<&-
}

# Installs the package with an extra into .venv, and notes that.
install() {
    local extra="$1"
    echo "setting up: installing the packages of setup.cfg into .venv (once; some minutes)" >&2
    "$venv/bin/python" -P -c 'import pip' 2>/dev/null || "$venv/bin/python" -P -m ensurepip >&2 ||
        refuse "$venv has no pip for its Python, and none could be put there (the reason is above); mend that, or remove .venv, and start again"
    (cd "$project" && .venv/bin/python -P -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}") ||
        refuse "the packages could not be installed (pip's words are above); check the network and the free disk space, then start again"
    is_set_up "$extra" || true  # for the Python and the packages that are there now
    # With an extra, the packages without it are there too.
    echo "$wanted" > "$stamp" && echo "$wanted" > "$venv/.installed" ||
        refuse "$stamp could not be written (the reason is above); check the free disk space and the rights on $venv, then start again"
}

show_help() {
    sed -n '2,/^\[ /{/^# /s/^# //p}' "${BASH_SOURCE[0]}"
    exit 0
}

# Refuses an extra that setup.cfg has not, of which pip would only warn; several may be named with commas between them.
check_extras() {
    local known extra
    known="$(sed -n '/^\[options.extras_require\]/,/^\[options.entry/s/^\([A-Za-z0-9_-]*\) =$/\1/p' "$project/setup.cfg")"
    for extra in ${1//,/ }; do
        grep -qxF -e "$extra" <<< "$known" ||
            refuse "setup.cfg has no extra '$extra' to set up; there are: $(echo $known) (the form is: $0 --setup [EXTRA])"
    done
    [ "${2:-0}" -le 1 ] || refuse "--setup takes one word more at most, and $2 were given; the form is: $0 --setup [EXTRA]"
}

if [ "${1:-}" = "--setup" ]; then
    case "${2:-}" in -h | --help) show_help ;; esac
    check_extras "${2:-}" $(($# - 1))
fi
if [ "${1:-}" = "--setup" ] && [ "${2:-}" = "fp8" ]; then
    set_up
    exec "$venv/bin/python" -P "$project/trainer/start.py" trainer install-fp8  # which is compiled, against the torch that is there now
fi
if [ "${1:-}" = "--setup" ]; then
    set_up "${2:-}"
    echo "set up: $venv has all packages${2:+, those of the extra $2 included}; train with: $0" >&2
    exit 0
fi
case "${1:-}" in
    -h | --help)
        if [ ! -x "$venv/bin/python" ]; then  # which is asked before anything is installed
            show_help
        fi
        ;;
esac
set_up
export TRAINER_DOOR="$0"
exec "$venv/bin/python" -P "$project/trainer/start.py" trainer "$@"
