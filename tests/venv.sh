#!/usr/bin/env bash
# Makes the two client environments of the tests, each only if it is missing:
#   .venv-cli39   stratis-cli 3.9.1, needs Python 3.12 or newer
#   .venv-cli38   stratis-cli 3.8.1, for a Python of 3.9 or newer (3.11 is preferred)
# They come as released on PyPI. dbus-python is built from source: it needs a C compiler,
# pkg-config, libdbus-1-dev and libglib2.0-dev.
#
# Says nothing when both are there; says in one line what it cannot make, and then ends with 1.
set -uo pipefail

cd "$(dirname "$0")/.." || exit 1

# The first Python that reports at least version 3.$1 and not more than 3.$2.
python_between() {
    local least=$1 most=$2 candidate
    for candidate in ${PYTHON:-} python3.{11..20} python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
        # A name that does not exist, or a pyenv shim without its version, fails here.
        "$candidate" -c "
import ensurepip, sys, venv
sys.exit(not (3, $least) <= sys.version_info[:2] <= (3, $most))" 2>/dev/null || continue
        echo "$candidate"
        return 0
    done
    return 1
}

# make FOLDER RELEASE LEAST MOST: an environment with stratis-cli RELEASE.
make_environment() {
    local folder=$1 release=$2 least=$3 most=$4 python log
    if "$folder/bin/stratis" --version >/dev/null 2>&1; then
        return 0
    fi
    if ! python=$(python_between "$least" "$most"); then
        echo "venv: cannot make $folder: no Python from 3.$least to 3.$most with venv was found" >&2
        return 1
    fi
    log=$(mktemp) || return 1
    rm -rf "$folder"
    if "$python" -m venv "$folder" >"$log" 2>&1 \
        && "$folder/bin/pip" install --quiet --disable-pip-version-check "stratis-cli==$release" >>"$log" 2>&1 \
        && "$folder/bin/stratis" --version >>"$log" 2>&1; then
        echo "venv: made $folder with stratis-cli $release ($("$folder/bin/python" --version))"
        rm -f "$log"
        return 0
    fi
    rm -rf "$folder"
    echo "venv: cannot make $folder with stratis-cli $release: $(grep -v '^ *$' "$log" | tail -n 1) (whole log: $log)" >&2
    return 1
}

failed=0
make_environment .venv-cli39 3.9.1 12 99 || failed=1
make_environment .venv-cli38 3.8.1 9 11 || failed=1
exit "$failed"
