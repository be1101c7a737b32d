#!/bin/sh
# Starts a containerd by hand, in mount and network namespaces of its own, drives it by ctr with dhow's
# shim, or with containerd's own on dhow, and prints a line for each feature: "ok NAME" or "FAIL NAME exit
# code: what was said". Ends with 1 if one failed.
#
#   containerd.sh stable|trixie|sid shim|path
#
# stable: the installed one. trixie, sid: of the folders that `integration/peers.sh engines` makes.
set -eu
which=${1:?stable, trixie or sid} mode=${2:?shim or path}
cd "$(dirname "$0")"
. ./common.sh
if [ $which != stable ]; then
    S=$P/$which
    enter containerd.sh "$@"
else
    [ "${DHOW_INSIDE-}" ] || DHOW_INSIDE=yes exec unshare --mount --net --propagation private "$PWD/containerd.sh" "$@"
    ip link set lo up
    D=$(mktemp -d /tmp/dhow-containerd.XXXXXX)
    # The roots of user namespaces pass through.
    chmod 711 "$D"
    cd "$D"
fi
export PATH=$W/bin:$PATH
make_image
cat >c.toml <<X
version = 2
root = "$D/root"
state = "$D/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$D/sock"
[ttrpc]
address = "$D/sock.ttrpc"
X
containerd --config c.toml >cd.log 2>&1 </dev/null & CP=$! DP=
# Also when this script gives up.
trap 'kill -9 $CP $DP 2>/dev/null || true' EXIT
until [ -S sock ]; do sleep .1; done
# Its name is that of the cgroup.
export CONTAINERD_NAMESPACE=dhow-containerd-$$-$which-$mode
export CONTAINERD_ADDRESS=$D/sock CONTAINERD_SNAPSHOTTER=native
ENGINE=ctr
runtime="--runtime io.containerd.dhow.v2"
[ "$mode" = path ] && runtime="--runc-binary $W/bin/dhow"
version=$(containerd --version | cut -d' ' -f3)
echo "engine containerd ${version%%[~+]*}"
DIR=$D PAGE=containerd.md NOT_FOUND='1:*no such file*'
# What its client has no words for; images, networks and the rest are its users' to make.
LACKS="notexec update updated cp cp-seen cp-out cp-out-seen commit stop exited restart commit-run named-volume volume-again
    ulimit init health unhealthy exec-up healthy rm-health restart-policy restarted rm-f build built"
[ $which = sid ] || LACKS="$LACKS run-cr checkpoint restore restored rm-cr"
# 1.6 looks users up in the image, which has none.
[ $which = stable ] && LACKS="$LACKS user"
[ "$mode" = path ] && LACKS="$LACKS docs"
# With a user namespace the client of 1.6 forgets --runc-binary.
[ $which:$mode = stable:path ] && LACKS="$LACKS userns"
LACKS=$(echo $LACKS)
[ -e /etc/hosts ] || touch /etc/hosts
[ -e /etc/resolv.conf ] || touch /etc/resolv.conf
# What a test has left behind that failed.
gone() {
    client task delete -f $1 >/dev/null 2>&1 || true
    client container delete $1 >/dev/null 2>&1 || true
}
once() {
    options=
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client run $runtime --rm $options $I once "$@" && result=0 || result=$?
    [ $result = 0 ] || gone once
    return $result
}
begin() {
    container=$1 options=
    shift
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client run -d $runtime --log-uri "file://$D/log-$container" $options $I $container "$@"
}
inside() {
    container=$1 options=
    shift
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client task exec --exec-id e $options $container "$@"
}
inside_words() { echo task exec --exec-id it --tty $1 sh; }
terminal_words() { echo run $runtime --rm -t $I term; }
state_of() {
    state=$(client task ls | while read -r id pid state; do [ "$id" != $1 ] || echo $state; done)
    case $state in
    RUNNING) echo running ;;
    PAUSED) echo paused ;;
    # The exit code is told by the deletion.
    STOPPED) echo exited 137 ;;
    *) echo "$state" ;;
    esac
}
limits_of() {
    for file in memory/X/memory.limit_in_bytes X/memory.max cpu/X/cpu.cfs_quota_us X/cpu.max; do
        cat "/sys/fs/cgroup/$(echo $file | sed "s,X,$CONTAINERD_NAMESPACE/$1,")" 2>/dev/null || true
    done | tr '\n' ' '
}
LIMITS='0:33554432 50000*'
words() {
    case $1 in
    exec-user) echo --user 1000 ;;
    tmpfs) echo --mount type=tmpfs,src=tmpfs,dst=/tmp,options=nosuid ;;
    read-only) echo --read-only ;;
    volume) echo --mount type=bind,src=$D/f,dst=/etc/f,options=bind:ro ;;
    user) echo --user 5 ;;
    # ctr drops them one by one.
    cap-drop) for name in CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE; do echo --cap-drop CAP_$name; done ;;
    seccomp) echo --seccomp --seccomp-profile $D/deny.json ;;
    limits) echo --memory-limit 33554432 --cpus .5 ;;
    device) echo --device /dev/zero ;;
    privileged) echo --privileged ;;
    oom) echo --memory-limit 16777216 ;;
    host-net) echo --net-host ;;
    userns) echo --uidmap 0:100000:65536 --gidmap 0:100000:65536 ;;
    esac
}
does() {
    what=$1
    shift
    case $what in
    # Into the content alone: what runs unpacks it.
    load) (unset CONTAINERD_SNAPSHOTTER; client image import $1) ;;
    logs) cat log-$1 ;;
    stats) client task metrics $1 ;;
    top) client task ps $1 ;;
    unpause) client task resume $1 ;;
    kill) client task kill -s KILL $1 ;;
    rm) client task delete -f $1 && client container delete $1 ;;
    tag) client image tag $I docker.io/library/$1:latest ;;
    save) client image export $1 $I ;;
    list) client task ls -q ;;
    checkpoint) client container checkpoint --task --rw --image $1 localhost/cr:latest && gone $1 ;;
    restore) client container restore --live --rw $1 localhost/cr:latest ;;
    *) client task $what $1 ;;
    esac
}
check_life
check_options
check_checkpoint
check_images
left left-shims "containerd-shim[^ ]* -namespace $CONTAINERD_NAMESPACE -[^ ]* [^ ]* *-address $D/sock"
kill $CP; wait || true
find /sys/fs/cgroup -depth -type d -path "*/$CONTAINERD_NAMESPACE" -exec rmdir {} + 2>/dev/null || true
cd /
if [ $which = stable ]; then
    umount -R -l "$D"/root 2>/dev/null || true
    rm -rf "$D"
fi
exit $failed
