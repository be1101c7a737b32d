#!/bin/bash
# A throw-away machine with pure cgroup v2, systemd and all capabilities, from Debian packages alone.
#
#   vm.sh build             makes the guest's root filesystem and kernel in $VMDIR (root; 2 minutes)
#   vm.sh run FILE...       boots it with the files in /host, runs the first one as root by bash,
#                           shows its output and exits with its status
#
# The guest's whole root filesystem is its initramfs, and the files are a second archive behind
# the first: no disk, no network. Output comes back over the serial port. The guest
# has a lingering user u1 (uid 1000) with a systemd session and delegated controllers.
# CMDLINE adds to the kernel's command line: systemd.unified_cgroup_hierarchy=0 gives cgroup v1.
set -euo pipefail
VMDIR=${VMDIR:-/var/tmp/dhow-test-vm}
MEM=${MEM:-2048}
CPUS=${CPUS:-2}
CMDLINE=${CMDLINE:-systemd.unified_cgroup_hierarchy=1}
LIMIT=${LIMIT:-600}
PACKAGES=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,busybox-static,procps,util-linux,kmod,strace,jq,passwd,iproute2,apparmor,selinux-policy-default
MODULES="overlay ext4 loop veth tun dummy bridge"

need() {
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v cpio >/dev/null || missing+=(cpio)
    command -v depmod >/dev/null || missing+=(kmod)
    [ ${#missing[@]} = 0 ] || apt-get install -y --no-install-recommends "${missing[@]}"
}

build() {
    need
    local root=$VMDIR/root
    mkdir -p "$VMDIR"
    if [ "$(cat "$root/.packages" 2>/dev/null)" != "$PACKAGES" ]; then
        rm -rf "$root"
        debootstrap --variant=minbase --include=$PACKAGES bookworm "$root"
        echo "$PACKAGES" >"$root/.packages"
    fi
    cd "$VMDIR"
    local image
    image=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -1)
    ls "$image"_*.deb >/dev/null 2>&1 || apt-get -o APT::Sandbox::User=root download "$image"
    rm -rf kernel && mkdir kernel && dpkg-deb -x "$image"_*.deb kernel
    cp kernel/boot/vmlinuz-* vmlinuz
    modules "$root"
    rm -rf kernel
    configure "$root"
    (cd "$root" && find . -path ./usr/share/doc -prune -o -path ./usr/share/locale -prune -o \
        -path ./usr/share/man -prune -o -path ./var/lib/apt/lists -prune -o \
        -path ./var/cache -prune -o -print |
        cpio -o -H newc --quiet) >guest.cpio
    ls -l guest.cpio vmlinuz
}

# What is no part of the kernel itself and what containers need.
modules() {
    local root=$1 version module
    version=$(ls kernel/lib/modules)
    depmod -b kernel "$version"
    rm -rf "$root/usr/lib/modules"
    mkdir -p "$root/usr/lib/modules/$version"
    modprobe -S "$version" -d "$PWD/kernel" --show-depends -a $MODULES |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r module; do
        cp "$module" "$root/usr/lib/modules/$version/"
    done
    depmod -b "$root/usr" "$version" 2>/dev/null || depmod -b "$root" "$version"
    echo "$MODULES" | tr ' ' '\n' >"$root/etc/modules-load.d/dhow.conf"
}

configure() {
    local root=$1
    echo dhow-vm >"$root/etc/hostname"
    : >"$root/etc/fstab"
    chroot "$root" passwd -d root >/dev/null
    chroot "$root" id u1 >/dev/null 2>&1 || chroot "$root" useradd -m -u 1000 -s /bin/bash u1
    mkdir -p "$root/var/lib/systemd/linger" "$root/host"
    : >"$root/var/lib/systemd/linger/u1"
    mkdir -p "$root/etc/systemd/system/user@.service.d" "$root/etc/systemd/system/multi-user.target.wants"
    printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >"$root/etc/systemd/system/user@.service.d/delegate.conf"
    local unit
    for unit in getty@tty1 serial-getty@ttyS0 e2scrub_reap systemd-update-utmp systemd-update-utmp-runlevel \
        systemd-timesyncd systemd-pstore; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
    done
    for unit in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim man-db; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit.timer"
    done
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    cat >"$root/etc/systemd/system/dhow-test.service" <<'UNIT'
[Unit]
After=dbus.service systemd-logind.service systemd-user-sessions.service user@1000.service
[Service]
Type=oneshot
Environment=HOME=/root TERM=dumb
ExecStart=/bin/bash -c 'cd /host; bash ./$(cat first) >/dev/ttyS0 2>&1 </dev/null; printf "\\n@status %%d\\n" $? >/dev/ttyS0; systemctl poweroff --force --force'
UNIT
    ln -sf /etc/systemd/system/dhow-test.service "$root/etc/systemd/system/multi-user.target.wants/"
    # Where SELinux is chosen (CMDLINE="security=selinux selinux=1"): nothing in this root has a label.
    mkdir -p "$root/etc/selinux"
    printf 'SELINUX=permissive\nSELINUXTYPE=default\n' >"$root/etc/selinux/config"
    # The kernel's own root cannot be left by pivot_root(2), which containers do: move to a tmpfs.
    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=90% root /new
for d in /*; do
    case $d in /new | /init | /proc | /sys | /dev | /run | /tmp) ;; *) /bin/busybox cp -a $d /new/ ;; esac
done
/bin/busybox mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp
/bin/busybox chmod 1777 /new/tmp
exec /bin/busybox switch_root /new /lib/systemd/systemd
INIT
    chmod +x "$root/init"
}

run() {
    need
    [ -f "$VMDIR/guest.cpio" ] || (build >&2)
    local work
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/host"
    cp -- "$@" "$work/host/"
    basename "$1" >"$work/host/first"
    (cd "$work" && find host | cpio -o -H newc --quiet) >"$work/host.cpio"
    cat "$VMDIR/guest.cpio" "$work/host.cpio" >"$work/initrd"
    rm -rf "$work/host" "$work/host.cpio"
    timeout "$LIMIT" qemu-system-x86_64 -accel tcg,thread=multi,tb-size=512 -M q35,smbus=off,usb=off -cpu max \
        -m "$MEM" -smp "$CPUS" -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$VMDIR/vmlinuz" -initrd "$work/initrd" -serial "file:$work/serial" \
        -append "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr random.trust_cpu=on systemd.show_status=0 $CMDLINE" ||
        echo "the virtual machine did not end by itself within $LIMIT s"
    tr -d '\r' <"$work/serial" | sed '/^@status /d'
    local status
    status=$(tr -d '\r' <"$work/serial" | sed -n 's/^@status //p')
    exit "${status:-125}"
}

case "${1:-}" in
build) build ;;
run)
    shift
    run "$@"
    ;;
*) sed -n '2,14p' "$0" ;;
esac
