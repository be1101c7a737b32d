#!/bin/bash
# dhow on a 64-bit ARM kernel: the static binaries for aarch64, and the unit and integration tests that need
# neither engines nor much time, in an emulated machine of Debian's arm64 kernel and busybox.
#
#   test-arm64.sh            builds, boots and tests
#   test-arm64.sh TEST...    these integration tests alone
set -euo pipefail
cd "$(dirname "$0")/.."
VMDIR=${VMDIR:-/var/tmp/dhow-test-vm}/arm64
LIMIT=${LIMIT:-2700}
MODULES="overlay erofs loop veth dummy bridge tun"
target=aarch64-unknown-linux-musl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. .ci/cross-aarch64

# Debian's arm64 kernel, by an apt of its own: this machine's keeps its architecture.
kernel() {
    mkdir -p "$VMDIR/apt/lists/partial" "$VMDIR/apt/cache/archives/partial"
    : >"$VMDIR/apt/status"
    local apt=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
        -o "Dir::State::lists=$VMDIR/apt/lists" -o "Dir::State::status=$VMDIR/apt/status" -o "Dir::Cache=$VMDIR/apt/cache")
    apt-get -qq "${apt[@]}" update
    local image
    image=$(apt-cache "${apt[@]}" depends linux-image-cloud-arm64 | sed -n 's/.*Depends: //p' | head -1)
    (cd "$VMDIR" && apt-get -qq "${apt[@]}" download "$image")
    dpkg-deb -x "$VMDIR"/linux-image-*.deb "$VMDIR/kernel"
    cp "$VMDIR"/kernel/boot/vmlinuz-* "$VMDIR/vmlinuz"
}

# The modules of what is no part of the kernel itself, and the order in which they are loaded.
modules() {
    local version
    version=$(ls "$VMDIR/kernel/lib/modules")
    depmod -b "$VMDIR/kernel" "$version"
    mkdir -p "$1"
    # shellcheck disable=SC2086 # a list of words
    modprobe -S "$version" -d "$VMDIR/kernel" --show-depends -a $MODULES | sed -n 's/^insmod \([^ ]*\).*/\1/p' |
        awk '!seen[$0]++' | while read -r module; do
        cp "$module" "$1/" && basename "$module" >>"$1/order"
    done
}

# Packages are unpacked and never configured: nothing of ARM can run here.
guest() {
    [ -f "$VMDIR/guest.cpio" ] && return
    local root=$VMDIR/root
    rm -rf "$VMDIR" && mkdir -p "$VMDIR"
    kernel
    debootstrap --foreign --arch=arm64 --variant=minbase --include=busybox-static,e2fsprogs,iproute2,procps,uidmap bookworm "$root" >"$VMDIR/log"
    find "$root/var/cache/apt/archives" -name '*.deb' -exec dpkg-deb -x {} "$root" \;
    modules "$root/modules"
    rm -rf "$VMDIR/kernel" "$root/debootstrap"
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
    # The kernel's own root cannot be left by pivot_root(2), which containers do: move to a tmpfs.
    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=90% root /new
for d in /*; do
    case $d in /new | /init) ;; *) /bin/busybox cp -a $d /new/ ;; esac
done
exec /bin/busybox switch_root /new /bin/busybox sh /host/init
INIT
    chmod +x "$root/init"
    (cd "$root" && find . -path ./usr/share -prune -o -path ./var/cache -prune -o -path ./var/lib/apt -prune -o -print |
        cpio -o -H newc --quiet) >"$VMDIR/guest.cpio"
}

# The tests find the programs, and the pages that they hold to their word, where they were built.
collect() {
    local tree=$work/host/tree$PWD file
    mkdir -p "$tree/target/$target/debug/deps" "$tree/bin" "$tree/integration" "$work/host/unit"
    export DHOW_TARGET=$target
    cargo build --locked --target $target --release --package dhow --package dhow-monitor --package containerd-shim-dhow-v2
    for file in dhow dhow-monitor containerd-shim-dhow-v2; do cp "target/$target/release/$file" "$tree/bin/"; done
    executables --package dhow --lib | while read -r file; do $strip -o "$work/host/unit/${file##*/}" "$file"; done
    executables --package dhow-integration | while read -r file; do
        case ${file##*/} in
        crash-* | crowd-* | engines-* | shim* | cri-* | pull-* | readme-* | library-* | payload-*) ;;
        *) $strip -o "$tree/$file" "$file" ;;
        esac
    done
    $strip -o "$tree/target/$target/debug/payload" "target/$target/debug/payload"
    cp -r docs README.md man tests src "$tree/"
}

executables() {
    cargo test --locked --no-run --target "$target" "$@" 2>&1 | tee /dev/stderr |
        sed -n 's/.*Executable.* (\(.*\))$/\1/p'
}

guest
collect
(cd "$work/host/tree" && tar -cf ../tree.tar . && cd .. && rm -r tree)
cat >"$work/host/init" <<GUEST
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0 DHOW_SLOWER=5
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir -p /dev/pts /dev/shm /root
mount -t devpts -o ptmxmode=666 pts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t mqueue mqueue /dev/mqueue 2>/dev/null
for module in \$(cat /modules/order); do busybox insmod /modules/\$module; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for one in \$(cat /sys/fs/cgroup/cgroup.controllers); do echo +\$one > /sys/fs/cgroup/cgroup.subtree_control; done
ip link set lo up; echo dhow-arm64 > /proc/sys/kernel/hostname
# /tmp is a disk there: tmpfs has neither idmapped mounts nor the users' own attributes before 6.6.
mkdir /disk && mount -t tmpfs -o size=3g tmpfs /disk && truncate -s 1G /disk/disk && mkfs.ext4 -q -O ^has_journal /disk/disk
mount -o loop /disk/disk /tmp && chmod 1777 /tmp
tar -C / -xf /host/tree.tar && cd "$PWD/integration"
exec >/dev/ttyAMA0 2>&1 </dev/null
uname -srm
status=0
run() { echo "== \$*"; "\$@" || status=1; }
if [ -z "$*" ]; then for unit in /host/unit/*; do (cd .. && run timeout 900 \$unit --test-threads=2 --skip model_test --skip a_filter_too_long; exit \$status) || status=1; done; fi
for test in "$PWD/target/$target"/debug/deps/*; do
    name=\${test##*/}
    case " $* " in "  " | *" \${name%-*} "*) run timeout 600 "\$test" --test-threads=2 ;; esac
done
echo "@status \$status"
busybox poweroff -f
GUEST
(cd "$work" && find host | cpio -o -H newc --quiet) >"$work/host.cpio"
cat "$VMDIR/guest.cpio" "$work/host.cpio" >"$work/initrd" && rm -rf "$work/host" "$work/host.cpio"
timeout "$LIMIT" qemu-system-aarch64 -accel tcg,thread=multi,tb-size=512 -M virt,gic-version=3 -cpu max,pauth-impdef=on \
    -m 6144 -smp 2 -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$VMDIR/vmlinuz" -initrd "$work/initrd" -serial "file:$work/serial" \
    -append "console=ttyAMA0 quiet loglevel=3 panic=-1 mitigations=off nokaslr" ||
    echo "the virtual machine did not end by itself within $LIMIT s"
tr -d '\r' <"$work/serial" | sed '/^@status /d'
status=$(tr -d '\r' <"$work/serial" | sed -n 's/^@status //p')
exit "${status:-125}"
