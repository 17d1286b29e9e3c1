#!/usr/bin/env bash
# boot.sh [options] 'COMMAND'   boot a throw-away machine, run COMMAND in it as root, end with its exit status
#   --vm uml|qemu     uml (default): User Mode Linux, native speed, one CPU. qemu: emulated, CPUS of them
#   -d FILE           a disk: an existing raw image, opened read-write (repeatable, in this order)
#   -o DIR            what is /out in the guest (uml: at once; qemu: copied back at the end); it gets `console`
#                     and, at once, `machine.pid`: kill that (uml: its process group) to cut the power
#   -p SRC:DST        copy a file or folder of the host to DST in the guest before services start (repeatable)
#   -e NAME=VALUE     the command's environment (repeatable)
#   -t SECONDS        time limit (default 300; then the status is 124)     -m MIB  memory (default 1536)
#   -c CPUS           (qemu, default 2)                                    -K WORDS  of the kernel's command line
# The guest sees: the host's root, read-only below an overlay in memory; the disks as $RIG_DISKS (with colons);
# udevd and a system bus. Status 125: the guest ended without a status; the end of its console is on stderr.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=${VM_CACHE:-$root/target/vm}
vm=uml cpus=2 memory=1536 out= limit=300 words=
disks=() pushes=() names=()
[ $# -ge 1 ] || { sed -n '2,13p' "$0"; exit 2; }
mkdir -p "$cache/run"
work=$(mktemp -d "$cache/run/XXXXXX")
rig=$work/rig
children=()
cleanup() {
	for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null; done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir -p "$rig/root" "$rig/out"
: >"$rig/env"
while [ $# -gt 0 ]; do
	case $1 in
	--vm) vm=$2; shift 2 ;;
	-d) disks+=("$(readlink -f "$2")"); shift 2 ;;
	-o) out=$(readlink -f "$2"); shift 2 ;;
	-p) pushes+=("$2"); shift 2 ;;
	-e) printf 'export %s=%q\n' "${2%%=*}" "${2#*=}" >>"$rig/env"; shift 2 ;;
	-t) limit=$2; shift 2 ;;
	-m) memory=$2; shift 2 ;;
	-c) cpus=$2; shift 2 ;;
	-K) words=$2; shift 2 ;;
	-*) echo "boot.sh: $1?" >&2; exit 2 ;;
	*) break ;;
	esac
done
printf '%s\n' "$*" >"$rig/cmd"
cp "$here/guest-init" "$rig/"
for push in ${pushes[@]+"${pushes[@]}"}; do
	mkdir -p "$rig/root/$(dirname "${push#*:}")"
	cp -aL "${push%%:*}" "$rig/root/${push#*:}"
done
# Says which process the machine is, for whoever wants to switch it off.
named=(sh -c 'echo $$ >"$0"; exec "$@"' "${out:-$work}/machine.pid")
letters=(a b c d e f g h i j k l m n o p q r s t u v w x y z)

# Sets `cpu` to one that no other machine has, or to any. User Mode Linux is two processes that take turns: on two CPUs
# each turn wakes an idle one, and the machine is four times as slow.
choose_cpu() {
	local part all=()
	for part in $(sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status | tr , ' '); do
		all+=($(seq "${part%-*}" "${part#*-}"))
	done
	for cpu in "${all[@]}"; do
		exec 8>"$cache/run/cpu$cpu"
		flock -n 8 && return
	done
	exec 8>&-
	cpu=${all[RANDOM % ${#all[@]}]}
}

run_uml() {
	local modules arguments=() n=0 file cpu
	choose_cpu
	modules=$(compgen -G "$cache/uml/usr/lib/uml/modules/*" | head -n1)
	for file in ${disks[@]+"${disks[@]}"}; do
		arguments+=("ubd$n=$file")
		names+=("/dev/ubd${letters[n]}")
		n=$((n + 1))
	done
	finish_env
	# The command's output is serial line 0; the kernel's console is a file. Its memory is a file in /dev/shm.
	TMPDIR=/dev/shm taskset -c "$cpu" timeout --foreground -k 5 "$limit" "${named[@]}" "$cache/uml/usr/bin/linux.uml" mem="${memory}M" root=/dev/root \
		rootfstype=hostfs rootflags=/ ro init="$here/uml-init" con=null con0=null,fd:3 ssl0=null,fd:4 console=tty0 \
		quiet panic=-1 rig.vm=uml rig.rigdir="$rig" rig.outdir="$out" rig.umlmods="$modules" rig.moddir="$modules" \
		${arguments[@]+"${arguments[@]}"} $words 3>"$work/console" >"$work/vm.log" 2>&1 </dev/null &
}

run_qemu() {
	local n=0 file arguments daemon=/usr/lib/qemu/virtiofsd
	[ -x "$daemon" ] || daemon=/usr/libexec/virtiofsd
	arguments=(-name rig -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp "$cpus" -m "$memory"
		-nodefaults -no-user-config -display none -no-reboot -kernel "$cache/qemu/vmlinuz"
		-serial "file:$work/console" -monitor none
		-object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng
		-device virtio-serial-pci,id=vs,max_ports=8
		-chardev file,id=cout,path=/dev/fd/4,append=on -device virtserialport,chardev=cout,name=rig.out
		-chardev "file,id=crc,path=$rig/rc" -device virtserialport,chardev=crc,name=rig.rc
		-chardev "file,id=ctar,path=$work/out.tar" -device virtserialport,chardev=ctar,name=rig.tar
		-object "memory-backend-memfd,id=mem,size=${memory}M,share=on" -numa node,memdev=mem
		-chardev "socket,id=vfs,path=$work/vfs.sock" -device vhost-user-fs-pci,chardev=vfs,tag=root)
	"$daemon" --socket-path="$work/vfs.sock" -o source=/ -o cache=always -o sandbox=chroot -o no_posix_lock -f \
		>"$work/vfs.log" 2>&1 &
	children+=($!)
	for _ in {1..250}; do
		[ -S "$work/vfs.sock" ] && break
		sleep .02
	done
	for file in ${disks[@]+"${disks[@]}"}; do
		arguments+=(-drive "file=$file,format=raw,if=none,id=d$n,cache=unsafe,discard=unmap,aio=threads"
			-device "virtio-blk-pci,drive=d$n,serial=rig$n,num-queues=$cpus")
		names+=("/dev/vd${letters[n]}")
		n=$((n + 1))
	done
	finish_env
	# A second archive appended to the first: /rig.
	{ cat "$cache/initrd.cpio"; (cd "$work" && find rig | cpio --quiet -o -H newc); } >"$work/initrd"
	timeout --foreground -k 5 "$limit" "${named[@]}" qemu-system-x86_64 "${arguments[@]}" -initrd "$work/initrd" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on \
rig.vm=qemu rig.outdir=$out rig.moddir=$(compgen -G "$cache/qemu/lib/modules/*" | head -n1) $words" \
		>"$work/vm.log" 2>&1 </dev/null &
}

finish_env() {
	printf 'export RIG_VM=%q RIG_DISKS=%q RIG_CACHE=%q\n' "$vm" "$(IFS=:; echo "${names[*]-}")" "$cache" >>"$rig/env"
}

# A descriptor of our own for the command's output, so that nothing of the machine's reaches ours.
exec 4> >(exec cat)
cat=$!
"run_$vm"
machine=$!
children+=("$machine")
wait "$machine"
status=$?
exec 4>&-
wait "$cat" 2>/dev/null
if [ -n "$out" ]; then
	cp "$work/console" "$out/console" 2>/dev/null
	[ ! -s "$work/out.tar" ] || tar -C "$out" -xf "$work/out.tar"
fi
if [ -s "$rig/rc" ]; then
	read -r result _ <"$rig/rc"
	exit "$result"
fi
result=125
[ "$status" != 124 ] && [ "$status" != 137 ] || result=124
{
	echo "boot.sh: no exit status from the guest (the machine's: $status, limit $limit s); its console:"
	tail -n 25 "$work/console"
	tail -n 8 "$work/vm.log"
} >&2
exit "$result"
