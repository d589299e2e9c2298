#!/bin/sh
# Make .venv where it is missing, and install what training needs into it; with `dev`, all the rest.
#
# PYTHON=python3.13 asks for that Python; otherwise a .venv keeps the one it has. A .venv whose
# Python is another, or does not start, is made again, but only if this script made it.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mark=.venv/made_by_make # says with which Python
installed=.venv/installed${1:+_$1}

fail() {
    echo "error: $1" >&2
    exit 1
}

# Print the version and the place of a Python; those of a virtual environment are its maker's.
identify() {
    "$1" -c 'import sys; v = sys.version_info
print("%d.%d %s" % (v[0], v[1], getattr(sys, "base_prefix", "")))' 2>/dev/null
}

present=$(identify .venv/bin/python) || present=
if [ -e $mark ] && [ "$present" != "$(cat $mark)" ]; then
    present= # it runs another Python since an upgrade, without the packages
fi
wanted=$present
if [ -z "$present" ] || [ -n "${PYTHON:-}" ]; then
    needs="mnist_exp needs Python 3.10 to 3.14; name one, as in make train PYTHON=python3.13"
    wanted=$(identify "$python") || fail "$python is not installed or does not start; $needs"
    case $wanted in
        3.1[0-4]\ *) ;;
        *) fail "$python is Python ${wanted%% *}; $needs" ;;
    esac
fi

if [ "$present" != "$wanted" ]; then
    if [ -e .venv ] && [ ! -e $mark ]; then
        fail ".venv was not made by make, and its Python differs or does not start; remove it"
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no module venv; install it (on Debian: apt install python3-venv)"
    rm -rf .venv
    mkdir .venv
    echo "$wanted" >$mark # first, so that it is made again if this is interrupted
    "$python" -m venv .venv
elif [ ! -e $mark ]; then
    echo ".venv was not made by make: it is used as it is, and nothing is installed into it"
    exit
fi

if [ ! -e "$installed" ] || [ pyproject.toml -nt "$installed" ]; then
    .venv/bin/python -m pip install -e ".${1:+[$1]}"
    touch .venv/installed "$installed" # dev has what training needs, too
fi
