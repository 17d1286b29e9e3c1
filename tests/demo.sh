#!/usr/bin/env bash
# What stratisd does, in under a minute and without root: a pool on two sparse files, five
# filesystems, listed with the released stratis-cli; as root one of them is also mounted.
#
#   tests/demo.sh [--keep]
#
# --keep leaves the daemon, its bus and its folder for you to go on with.
# STRATISD is the binary (target/release/stratisd), STRATIS the client (from tests/venv.sh).
set -euo pipefail

cd "$(dirname "$0")/.."
root=$PWD
binary=${STRATISD:-target/release/stratisd}
keep=no
case ${1:-} in
    --keep) keep=yes ;;
    "") ;;
    *)
        echo "usage: tests/demo.sh [--keep]" >&2
        exit 2
        ;;
esac

fail() {
    echo "demo: $*" >&2
    exit 1
}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Shows a command and runs it.
run() {
    printf '  $ %s\n' "$(short "$*")"
    "$@" 2>&1 | sed 's/^/    /'
}

# A command as a person would type it.
short() {
    local text=${1//"$cli"/stratis}
    printf '%s' "${text//"$folder"/\$D}"
}

[[ -x $binary ]] || fail "$binary is not there: build it with 'cargo build --release', or name it with STRATISD=…"
binary=$(realpath "$binary")
command -v dbus-daemon >/dev/null || fail "dbus-daemon is not installed (Debian: dbus-daemon)"
command -v xfs_repair >/dev/null || fail "xfs_repair is not installed (Debian: xfsprogs)"
if [[ -n ${STRATIS:-} ]]; then
    cli=$STRATIS
else
    cli=$root/.venv-cli39/bin/stratis
    if [[ ! -x $cli ]]; then
        # It makes two environments; the demo needs only one of them.
        bash tests/venv.sh || true
        [[ -x $cli ]] || cli=$root/.venv-cli38/bin/stratis
    fi
fi
[[ -x $cli ]] || fail "stratis-cli is not there: tests/venv.sh says why, or name yours with STRATIS=…"

# Not in /tmp, which may be memory: the files are sparse, but not empty.
folder=$(mktemp -d /var/tmp/stratis-demo.XXXXXX)
bus_pid='' daemon_pid='' loop='' mounted=no

cleanup() {
    local code=$?
    trap - EXIT INT TERM
    [[ $mounted == no ]] || umount "$folder/mnt" || true
    [[ -z $loop ]] || losetup --detach "$loop" || true
    if [[ $code != 0 && -s $folder/log ]]; then
        echo "demo: the daemon said:" >&2
        tail -n 20 "$folder/log" >&2
    fi
    if [[ $keep == yes && $code == 0 ]]; then
        exit 0
    fi
    if [[ -n $daemon_pid ]]; then
        kill -INT "$daemon_pid" 2>/dev/null || true
        wait "$daemon_pid" 2>/dev/null || true
    fi
    if [[ -n $bus_pid ]]; then
        kill "$bus_pid" 2>/dev/null || true
        wait "$bus_pid" 2>/dev/null || true
    fi
    rm -rf "$folder"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Starts the daemon on the folder and waits until it answers.
start_daemon() {
    "$binary" --files "$folder/files" --run-dir "$folder/run" --log-level info 2>>"$folder/log" &
    daemon_pid=$!
    version=''
    for _ in {1..50}; do
        version=$("$cli" daemon version 2>/dev/null) && return 0
        kill -0 "$daemon_pid" 2>/dev/null || fail "the daemon ended at once"
        sleep 0.1
    done
    fail "the daemon does not answer"
}

say "1. A bus and a daemon of our own"
mkdir "$folder/files" "$folder/run"
mkfifo "$folder/address"
dbus-daemon --session --nofork --nopidfile --print-address=3 3>"$folder/address" 2>/dev/null &
bus_pid=$!
IFS= read -r DBUS_SYSTEM_BUS_ADDRESS <"$folder/address" || fail "dbus-daemon did not start"
rm "$folder/address"
export DBUS_SYSTEM_BUS_ADDRESS
start_daemon
echo "  stratisd $version runs as process $daemon_pid; block devices are files below \$D = $folder"

say "2. A pool on two sparse files of 8 GiB"
truncate --size 8G "$folder/disk1" "$folder/disk2"
run "$cli" pool create demo "$folder/disk1" "$folder/disk2"

say "3. Five filesystems of 10 GiB: more than the pool has, which is the point of thin volumes"
began=$(date +%s%N)
for name in home mail photos builds scratch; do
    run "$cli" filesystem create demo "$name" --size 10GiB
done
echo "  $((($(date +%s%N) - began) / 5000000)) ms for each, most of it the client's start"

say "4. What there is now"
run "$cli" pool list
run "$cli" filesystem list demo
run "$cli" blockdev list demo
echo "  The five volumes take $(du --summarize --block-size=M "$folder/files" | cut -f1) of your disk."

say "5. Where the filesystems are"
volumes=()
while IFS= read -r devnode; do
    volumes+=("$devnode")
    printf '  %s -> %s\n' "${devnode/"$folder"/\$D}" "$(realpath --relative-to="$folder" "$devnode")"
done < <(find "$folder/files/stratis/demo" -type l | sort)
[[ ${#volumes[@]} == 5 ]] || fail "five filesystems were made, and ${#volumes[@]} are there"

say "6. A restart: the daemon ends, another one finds everything"
kill -INT "$daemon_pid"
wait "$daemon_pid" || fail "the daemon did not end in order"
daemon_pid=''
start_daemon
echo "  Process $daemon_pid now."
run "$cli" pool list
found=$("$cli" filesystem list demo | tail -n +2 | wc -l)
[[ $found == 5 ]] || fail "five filesystems were made, and $found came back"
echo "  All five filesystems are there."

say "7. One of them mounted"
volume=$(realpath "${volumes[0]}")
name=$(basename "${volumes[0]}")
if [[ $(id -u) != 0 ]]; then
    echo "  Skipped: only root can mount."
elif ! loop=$(losetup --find --show "$volume" 2>/dev/null); then
    loop=''
    echo "  Skipped: this machine has no usable loop device."
elif mkdir "$folder/mnt" && ! mount -t xfs "$loop" "$folder/mnt" 2>"$folder/mount-error"; then
    echo "  Skipped: this kernel does not mount it: $(tr '\n' ' ' <"$folder/mount-error")"
    losetup --detach "$loop"
    loop=''
else
    mounted=yes
    head --bytes 4M /dev/urandom >"$folder/mnt/file"
    wrote=$(sha256sum <"$folder/mnt/file")
    umount "$folder/mnt"
    mount -t xfs "$loop" "$folder/mnt"
    read=$(sha256sum <"$folder/mnt/file")
    df --human-readable "$folder/mnt" | sed 's/^/    /'
    umount "$folder/mnt"
    mounted=no
    losetup --detach "$loop"
    loop=''
    [[ $wrote == "$read" ]] || fail "the file is not what was written"
    echo "  4 MiB written to '$name', unmounted, mounted again: the same checksum, ${read:0:16}…"
fi
if xfs_repair -n -f "$volume" >"$folder/repair" 2>&1; then
    echo "  xfs_repair -n finds nothing to repair in '$name'."
else
    cat "$folder/repair" >&2
    fail "xfs_repair finds something to repair in '$name'"
fi

say "8. By hand"
if [[ $keep == yes ]]; then
    cat <<TEXT
  Everything keeps running. In your shell:

    export DBUS_SYSTEM_BUS_ADDRESS='$DBUS_SYSTEM_BUS_ADDRESS'
    alias stratis='$cli'
    stratis pool list

  The log is $folder/log. To end it:

    kill -INT $daemon_pid; kill $bus_pid; rm -r $folder
TEXT
else
    cat <<TEXT
  This demo takes everything away when it ends ('--keep' leaves it running). To start again:

    cd '$root'
    D=\$(mktemp -d /var/tmp/stratis.XXXXXX); mkdir \$D/files \$D/run
    export DBUS_SYSTEM_BUS_ADDRESS=\$(dbus-daemon --session --fork --print-address)
    '$binary' --files \$D/files --run-dir \$D/run --log-level info &
    alias stratis='$cli'
    truncate --size 8G \$D/disk1 \$D/disk2
    stratis pool create demo \$D/disk1 \$D/disk2
    stratis pool list
TEXT
fi
