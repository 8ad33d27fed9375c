#!/bin/sh
# deploy/install.sh PYTHON: install this checkout into PYTHON's environment (its requirements are there already).
# The hot path is compiled with mypyc where a C compiler and Python's headers are; else it runs as plain Python,
# which costs about half as much CPU again per request. Same source, same behaviour. Run in the repository's root.
set -eu
python=$1
pip="$python -m pip --quiet --disable-pip-version-check"
work=build/loragate
# In a copy: the compiler leaves its products beside the source, where they would outlive the next edit.
rm -rf "$work" && mkdir -p "$work"
cp -R pyproject.toml README.md LICENSE adapters configs gateway training "$work/"
find "$work" -name __pycache__ -prune -exec rm -rf {} +
$pip install -r configs/environments/build.txt
if [ "${LORAGATE_COMPILE:-1}" = 1 ] && command -v "${CC:-cc}" >/dev/null; then
    echo "Compiling the gateway's hot path (about a minute) …"
    if HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $pip install --no-deps --no-build-isolation --force-reinstall "./$work" >"$work.log" 2>&1; then
        exit 0
    fi
    echo "The hot path could not be compiled (see $work.log; Python's headers may be missing): it runs as plain Python." >&2
else
    echo "No C compiler (cc) here: the hot path runs as plain Python, with about half as much CPU again per request." >&2
fi
find "$work" -name '*.so' -exec rm -f {} +
$pip install --no-deps --no-build-isolation --force-reinstall "./$work"
