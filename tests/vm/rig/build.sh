#!/usr/bin/env bash
# What boot.sh needs, made once below target/vm: kernels are downloaded and unpacked, never installed.
#   build.sh [uml] [qemu] [peer]      without arguments: uml
# "peer" is stratisd 3.9.2 from crates.io, a program that tests run beside ours: built, never read.
# Says on standard error, in one line, what is missing, and ends with 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=${VM_CACHE:-$root/target/vm}
mkdir -p "$cache/run"
exec 9>"$cache/lock"
flock 9

fail() { echo "$*" >&2; exit 1; }

need() {
	local missing= program
	for program; do command -v "$program" >/dev/null || missing+=" $program"; done
	[ -z "$missing" ] || fail "no$missing (make deps)"
}

# download PACKAGE: the package's file below $cache/packages.
download() {
	mkdir -p "$cache/packages"
	compgen -G "$cache/packages/$1_*.deb" >/dev/null && return
	command -v apt-get >/dev/null || fail "no package $1: this is no Debian"
	(cd "$cache/packages" && { apt-get download "$1" || { apt-get update && apt-get download "$1"; }; }) \
		>"$cache/download.log" 2>&1 || fail "no package $1 (apt-get download: $(tail -n1 "$cache/download.log"))"
}

# What the newest package of that name says it depends on, if it is a kernel.
kernel_package() {
	apt-cache depends "linux-image-cloud-amd64" | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n1
}

# Into a folder beside, then renamed: a half-unpacked kernel is never used.
unpack() {
	rm -rf "$2.new"
	mkdir -p "$2.new"
	dpkg-deb -x "$1" "$2.new"
	rm -rf "$2"
	mv "$2.new" "$2"
}

uml() {
	need cc busybox dbus-daemon dmsetup udevadm mkfs.xfs dpkg-deb setsid
	if [ ! -e "$cache/uml/usr/bin/linux.uml" ]; then
		download user-mode-linux
		unpack "$(compgen -G "$cache/packages/user-mode-linux_*.deb" | tail -n1)" "$cache/uml"
	fi
	[ "$cache/keyshim.so" -nt "$here/keyshim.c" ] || cc -O2 -shared -fPIC -o "$cache/keyshim.so" "$here/keyshim.c"
}

qemu() {
	need qemu-system-x86_64 busybox cpio depmod modprobe dpkg-deb
	[ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ] || fail "no virtiofsd (make deps)"
	if [ ! -e "$cache/qemu/vmlinuz" ]; then
		local package
		package=$(kernel_package)
		[ -n "$package" ] || fail "no package linux-image-cloud-amd64 (apt-get update)"
		download "$package"
		unpack "$(compgen -G "$cache/packages/${package}_*.deb" | tail -n1)" "$cache/qemu"
		depmod -b "$cache/qemu" "$(ls "$cache/qemu/lib/modules")"
		ln -s boot/"$(cd "$cache/qemu/boot" && ls vmlinuz-*)" "$cache/qemu/vmlinuz"
	fi
	[ "$cache/initrd.cpio" -nt "$here/qemu-init" ] || initrd
}

# busybox, the first program, and the modules that the root filesystem needs, in their order.
initrd() {
	local version tree module path
	version=$(ls "$cache/qemu/lib/modules")
	tree=$(mktemp -d)
	mkdir -p "$tree"/{bin,mods,proc,sys,dev,rig}
	cp "$(command -v busybox)" "$tree/bin/busybox"
	cp "$here/qemu-init" "$tree/init"
	for module in virtio_pci virtio_blk overlay virtiofs; do
		# A module built into the kernel is no fault.
		modprobe -d "$cache/qemu" -S "$version" --show-depends "$module" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r path; do
		cp "$path" "$tree/mods/"
		basename "$path"
	done >"$tree/mods/order"
	[ -s "$tree/mods/order" ] || fail "no modules in the package of the kernel"
	(cd "$tree" && find . | cpio --quiet -o -H newc) >"$cache/initrd.cpio.new"
	mv "$cache/initrd.cpio.new" "$cache/initrd.cpio"
	rm -rf "$tree"
}

# Minutes, and a gigabyte while it is built. One that is half built is never used.
peer() {
	[ ! -x "$cache/peer/bin/stratisd" ] || return 0
	need cc ar cargo pkg-config
	pkg-config --exists libcryptsetup || fail "no libcryptsetup (make test-peer)"
	rm -rf "$cache/peer.new"
	pkg-config --atleast-version 2.7 libcryptsetup || cryptshim
	PKG_CONFIG_PATH=$cache/cryptshim nice -n 19 cargo install stratisd --version 3.9.2 --bin stratisd --locked \
		--root "$cache/peer.new" --target-dir "$cache/peer-build" >"$cache/peer.log" 2>&1 ||
		fail "stratisd 3.9.2 cannot be built: $(tail -n1 "$cache/peer.log") ($cache/peer.log)"
	rm -rf "$cache/peer" "$cache/peer-build"
	mv "$cache/peer.new" "$cache/peer"
}

# The libcryptsetup of this machine as one that has what is missing from it.
cryptshim() {
	local shim=$cache/cryptshim
	mkdir -p "$shim"
	cc -O2 -fPIC -c -o "$shim/cryptshim.o" "$here/cryptshim.c"
	ar rcs "$shim/libcryptshim.a" "$shim/cryptshim.o"
	{ echo '#define DECLARE'; cat "$here/cryptshim.c"; } >"$shim/libcryptsetup.h"
	printf '%s\n' 'Name: cryptsetup' 'Description: with cryptshim.c' 'Version: 2.7.0' "Cflags: -I$shim" \
		"Libs: $(pkg-config --libs libcryptsetup) -L$shim -lcryptshim" >"$shim/libcryptsetup.pc"
}

for what in "${@:-uml}"; do
	case $what in
	uml) uml ;;
	qemu) qemu ;;
	peer) peer ;;
	*) fail "build.sh [uml] [qemu] [peer]" ;;
	esac
done
