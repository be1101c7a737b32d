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
ENGINE="ctr --address $D/sock"
I=localhost/dhow-test:latest
runtime="--runtime io.containerd.dhow.v2"
[ "$mode" = path ] && runtime="--runc-binary $W/bin/dhow"
R="run --snapshotter native $runtime"
# Whatever a test before has left running.
gone() {
    timeout 20 $ENGINE task delete -f $1 >/dev/null 2>&1 || true
    timeout 20 $ENGINE container delete $1 >/dev/null 2>&1 || true
}
# The state of a task.
state_is() { for attempt in $(seq 60); do timeout 20 $ENGINE task ls | grep -q "$1.*$2" && return; sleep .2; done; }
version=$(containerd --version | cut -d' ' -f3)
echo "engine containerd ${version%%[~+]*}"
t load '0:*' image import image.tar
t run '0:hi' $R --rm $I a echo hi
t exitcode '7:*' $R --rm $I b sh -c 'exit 7'
t notfound '1:*no such file*' $R --rm $I c /no/such
gone c
t run-d '0:*' $R -d $I ca sh -c 'echo out; exec sleep 1000'
t exec '0:in' task exec --exec-id e1 ca echo in
t exec-code '9:*' task exec --exec-id e2 ca sh -c 'exit 9'
t exec-user '0:1000' task exec --exec-id e3 --user 1000 ca id -u
t top '0:*' task ps ca
t stats '0:*pids*' task metrics ca
t pause '0:*' task pause ca
t paused '0:*PAUSED*' task ls
t unpause '0:*' task resume ca
t kill '0:*' task kill -s KILL ca
state_is ca STOPPED
t exited '0:*STOPPED*' task ls
t rm '0:*137*' task delete ca
t rm-container '0:*' container delete ca
t logs '0:' $R -d --log-uri "file://$D/log" $I l echo logged
t_own logged logged cat log
state_is l STOPPED
gone l
t tmpfs '0:*tmpfs*' $R --rm --mount type=tmpfs,src=tmpfs,dst=/tmp,options=nosuid $I d cat /proc/mounts
t read-only '1:*' $R --rm --read-only $I e sh -c 'echo x >/x'
echo data >f
t volume '0:data' $R --rm --mount type=bind,src=$D/f,dst=/etc/f,options=bind:ro $I f cat /etc/f
[ $which = stable ] || t user '0:5' $R --rm --user 5 $I g id -u
t cap-drop '0:*' $R --rm --cap-drop CAP_CHOWN $I h true
t device '0:*' $R --rm --device /dev/zero $I j ls -l /dev/zero
t privileged '0:hi' $R --rm --privileged $I k echo hi
t oom '137:*' $R --rm --memory-limit 8388608 $I m sh -c "$HOG"
[ -e /etc/hosts ] || touch /etc/hosts
t host-net '0:*' $R --rm --net-host $I n cat /proc/net/dev
t_own exec-it /dev/pts/0 script -qec "$ENGINE $R --rm -t $I o sh -c 'ls -l /proc/self/fd/0'" /dev/null
if criu check >/dev/null 2>&1; then
    t run-cr '0:' $R -d $I cr sh -c 'while :; do sleep 1; done'
    t checkpoint '0:*' container checkpoint --task --rw --image cr localhost/cr:latest
    gone cr
    t restore '0:*' container restore --live --rw cr2 localhost/cr:latest
    t restored '0:*cr2*RUNNING*' task ls
    gone cr2
fi
export CONTAINERD_ADDRESS=$D/sock CONTAINERD_SNAPSHOTTER=native
t tag '0:*' image tag $I docker.io/library/busybox:latest
[ "$mode" = path ] || doc_run containerd.md
t left-containers '0:' task ls -q
left=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\000' ' ' | grep -c "containerd-shim[^ ]* -namespace $CONTAINERD_NAMESPACE -[^ ]* [^ ]* *-address $D/sock" || true)
if [ "$left" = 0 ]; then echo "ok   left-shims"; else echo "FAIL left-shims $left"; failed=1; fi
kill $CP; wait || true
find /sys/fs/cgroup -depth -type d -path "*/$CONTAINERD_NAMESPACE" -exec rmdir {} + 2>/dev/null || true
cd /
if [ $which = stable ]; then
    umount -R -l "$D"/root 2>/dev/null || true
    rm -rf "$D"
fi
exit $failed
