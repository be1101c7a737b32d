#!/bin/sh
# Starts a containerd and a dockerd by hand, in mount and network namespaces of their own, drives
# them with dhow as the default runtime, and prints a line for each feature: "ok NAME" or "FAIL NAME
# exit code: what was said". Ends with 1 if one failed.
#
#   docker.sh sid path|shim
#   docker.sh stable path       20.10 takes no other shims than containerd's own
#
# sid: dockerd 28 and containerd 2.1 of the sid folder. stable: dockerd 20.10 (unpacked there) on the
# installed containerd. Both come with `integration/peers.sh docker`. path: containerd's own shim
# calls dhow; shim: containerd-shim-dhow-v2 does.
#
# Not tried here: bridges and published ports (the namespace has no way out), health checks, --init,
# devices.
set -eu
[ "${DHOW_INSIDE-}" ] || DHOW_INSIDE=yes exec unshare --mount --net --propagation private "$0" "$@"
which=${1:?sid or stable} mode=${2:?path or shim}
W=$(cd "$(dirname "$0")/../.." && pwd)
P=${DHOW_PEERS:-/var/tmp/dhow-peers} S=${DHOW_PEERS:-/var/tmp/dhow-peers}/sid
D=$(mktemp -d /tmp/dhow-docker.XXXXXX)
cd "$D"
ip link set lo up

# An image of busybox alone.
mkdir -p r/bin r/etc r/proc r/sys r/dev r/tmp ctx
cp "$(command -v busybox)" r/bin/busybox
for applet in sh true cat sleep echo id ps ls; do ln -s busybox r/bin/$applet; done
tar -C r -cf layer.tar .
layer=$(sha256sum layer.tar | cut -d' ' -f1)
echo '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]},"history":[]}' >config.json
echo '[{"Config":"config.json","RepoTags":["localhost/dhow-test:latest"],"Layers":["layer.tar"]}]' >manifest.json
tar -cf image.tar manifest.json config.json layer.tar
if [ $which = sid ]; then L="$S/lib64/ld-linux-x86-64.so.2 --library-path $S/usr/lib/x86_64-linux-gnu"; CD="$L $S/usr/bin/containerd"; DD="$L $S/usr/sbin/dockerd"; DK="$L $S/usr/bin/docker"; else CD=containerd; DD=$P/docker-stable/usr/sbin/dockerd; DK=$P/docker-stable/usr/bin/docker; fi
export PATH=$W/bin:$PATH:$P/docker-stable/usr/sbin
mkdir -p /run/docker
mount -t tmpfs tmpfs /run/docker
cat > c.toml <<X
version = 2
root = "$D/croot"
state = "$D/cstate"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$D/csock"
[ttrpc]
address = "$D/csock.ttrpc"
X
$CD --config c.toml >cd.log 2>&1 </dev/null & CP=$!
if [ "$mode" = shim ]; then RT='"runtimes":{"dhow":{"runtimeType":"io.containerd.dhow.v2"}}'; else RT='"runtimes":{"dhow":{"path":"'$W'/bin/dhow"}}'; fi
echo "{$RT,\"default-runtime\":\"dhow\"}" > daemon.json
until [ -S csock ]; do sleep .1; done
$DD --config-file $D/daemon.json --data-root $D/root --exec-root $D/exec --pidfile $D/pid -H unix://$D/dsock --containerd $D/csock --bridge none --iptables=false --ip6tables=false --storage-driver vfs >dd.log 2>&1 </dev/null & DP=$!
DK="$DK -H unix://$D/dsock"
for i in $(seq 60); do timeout 5 $DK version >/dev/null 2>&1 && break; sleep .25; done
failed=0
# t NAME PATTERN WORDS…: the pattern is of the exit code, a colon and the output.
t() {
    name=$1 pattern=$2
    shift 2
    said=$(timeout 30 $DK "$@" </dev/null 2>&1) && code=0 || code=$?
    case "$code:$said" in
    $pattern) echo "ok   $name" ;;
    *) echo "FAIL $name $code: $(echo "$said" | tail -n 3)"; failed=1 ;;
    esac
}
$DK version --format '{{.Server.Version}}'
t load '0:*' load -i image.tar
I=localhost/dhow-test:latest; N="--network none"
t run '0:hi' run --rm $N $I echo hi
t exitcode '7:*' run --rm $N $I sh -c 'exit 7'
t notfound '127:*' run --rm $N $I /no/such
t notexec '126:*' run --rm $N $I /etc
t run-d '0:*' run -d --name ca $N $I sh -c 'echo out; exec sleep 1000'
t exec '0:in' exec ca echo in
t exec-code '9:*' exec ca sh -c 'exit 9'
t exec-user '0:1000' exec -u 1000 ca sh -c 'id -u'
t top '0:*sleep*' top ca
t logs '0:out' logs ca
t stats '0:*' stats --no-stream ca
t pause '0:*' pause ca
t paused '0:paused' inspect -f '{{.State.Status}}' ca
t unpause '0:*' unpause ca
t update '0:*' update --memory 64m --memory-swap 128m ca
t updated '0:67108864' exec ca cat /sys/fs/cgroup/memory/memory.limit_in_bytes
echo data > $D/f
t cp '0:*' cp $D/f ca:/tmp/f
t cp-seen '0:data' exec ca cat /tmp/f
t commit '0:*' commit ca made
t stop '0:*' stop -t 1 ca
t exited '0:exited 137' inspect -f '{{.State.Status}} {{.State.ExitCode}}' ca
t restart '0:*' start ca
t kill '0:*' kill ca
t rm '0:*' rm ca
t commit-run '0:data' run --rm $N made cat /tmp/f
t tmpfs '0:*tmpfs*' run --rm $N --tmpfs /tmp/x $I cat /proc/mounts
t read-only '1:*' run --rm $N --read-only $I sh -c 'echo x >/x'
t volume '0:data' run --rm $N -v $D/f:/etc/f:ro $I cat /etc/f
t user '0:5' run --rm $N -u 5 $I sh -c 'id -u'
t cap-drop '0:*0000000000000000*' run --rm $N --cap-drop all $I sh -c 'cat /proc/self/status | while read name value; do case $name in CapEff:) echo $value;; esac; done'
t limits '0:33554432*' run --rm $N -m 32m --cpus .5 --pids-limit 20 $I cat /sys/fs/cgroup/memory/memory.limit_in_bytes
t ulimit '0:77' run --rm $N --ulimit nofile=77 $I sh -c 'ulimit -n'
t privileged '0:hi' run --rm $N --privileged $I echo hi
t oom '137:*' run --rm $N -m 8m --memory-swap 8m $I sh -c 'a=xxxxxxxx; while :; do a=$a$a; done'
t restart-policy '0:*' run -d --name rr --restart on-failure:2 $N $I sh -c 'exit 4'
sleep 2
t restarted '0:2 4' inspect -f '{{.RestartCount}} {{.State.ExitCode}}' rr
t host-net '0:hi' run --rm --network host $I echo hi
t rm-f '0:*' rm -f rr
t exec-it '0:*/dev/pts/0*' run --rm -t $N $I sh -c 'ls -l /proc/self/fd/0'
printf 'FROM localhost/dhow-test:latest\nRUN echo built > /b\n' > Dockerfile; mv Dockerfile ctx
t build '0:*' build -q -t b ctx
t built '0:built' run --rm $N b cat /b
t save '0:*' save -o $D/s.tar b
t left-containers '0:' ps -aq
left=$(pgrep -fc "containerd-shim.*$D/csock" || true)
if [ "$left" = 0 ]; then echo "ok   left-shims"; else echo "FAIL left-shims $left"; failed=1; fi
kill $DP; sleep 1; kill $CP; wait || true
umount exec/netns/default 2>/dev/null || true
cd /; rm -rf "$D"
exit $failed
