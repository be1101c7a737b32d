#!/bin/sh
# Starts a containerd and a dockerd by hand, in mount and network namespaces of their own, drives
# them with dhow as the default runtime, and prints a line for each feature: "ok NAME" or "FAIL NAME
# exit code: what was said". Ends with 1 if one failed.
#
#   docker.sh sid path|shim
#   docker.sh stable path       20.10 takes no other shims than containerd's own
#
# sid: dockerd 28 and containerd 2.1 of the sid folder, which is the root meanwhile. stable: dockerd
# 20.10 (unpacked beside it) on the installed containerd. Both come with `integration/peers.sh docker`.
# path: containerd's own shim calls dhow; shim: containerd-shim-dhow-v2 does.
set -eu
which=${1:?sid or stable} mode=${2:?path or shim}
cd "$(dirname "$0")"
. ./common.sh
if [ $which = sid ]; then
    enter docker.sh "$@"
else
    [ "${DHOW_INSIDE-}" ] || DHOW_INSIDE=yes exec unshare --mount --net --propagation private "$PWD/docker.sh" "$@"
    ip link set lo up
    D=$(mktemp -d /tmp/dhow-docker.XXXXXX)
    chmod 711 "$D"
    mkdir -p /run/docker
    mount -t tmpfs tmpfs /run/docker
    PATH=$PATH:$P/docker-stable/usr/sbin:$P/docker-stable/usr/bin
    cd "$D"
fi
# BuildKit inside dockerd calls "runc", whatever the configuration says.
mkdir -p bin ctx fails
printf '#!/bin/sh\necho "$*" >>'$D'/called\nexec '$W'/bin/dhow "$@"\n' >bin/runc
chmod 755 bin/runc
export PATH=$D/bin:$W/bin:$PATH
# Debian's docker-init is a link to another package's.
[ $which = sid ] || cp "$S/usr/bin/docker-init" bin
make_image
printf 'FROM localhost/dhow-test:latest\nRUN echo built > /b\n' >ctx/Dockerfile
printf 'FROM localhost/dhow-test:latest\nRUN exit 3\n' >fails/Dockerfile
cat >c.toml <<X
version = 2
root = "$D/croot"
state = "$D/cstate"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$D/csock"
[ttrpc]
address = "$D/csock.ttrpc"
X
# The page's first block has the path, its second the shim.
[ "$mode" = path ] && block=1 || block=2
doc_block docker.md json $block | sed "s,/usr/local/bin,$W/bin," >daemon.json
containerd --config c.toml >cd.log 2>&1 </dev/null & CP=$! DP=
# Also when this script gives up.
trap 'kill -9 $CP $DP 2>/dev/null || true' EXIT
until [ -S csock ]; do sleep .1; done
export DOCKER_HOST=unix://$D/dsock
ENGINE=docker
# Others may have their containers in /docker.
cgroup=dhow-docker-$$-$which-$mode
# start_dockerd OPTIONS…
start_dockerd() {
    dockerd --config-file $D/daemon.json --data-root $D/root --exec-root $D/exec --pidfile $D/pid -H unix://$D/dsock \
        --containerd $D/csock --ip6tables=false --storage-driver vfs --cgroup-parent /$cgroup --live-restore --experimental "$@" >>dd.log 2>&1 </dev/null & DP=$!
    for attempt in $(seq 120); do
        timeout 5 $ENGINE version >/dev/null 2>&1 && return
        kill -0 $DP 2>/dev/null || { tail -n 5 dd.log; return; }
        sleep .25
    done
}
start_dockerd
version=$($ENGINE version --format '{{.Server.Version}}') || { tail -n 20 dd.log; exit 1; }
echo "engine Docker ${version%%+*}"
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
echo data >f
t cp '0:*' cp $D/f ca:/tmp/f
t cp-seen '0:data' exec ca cat /tmp/f
t commit '0:*' commit ca made
kill -9 $DP; wait $DP 2>/dev/null || true
rm -f pid dsock
start_dockerd
t live-restore '0:running' inspect -f '{{.State.Status}}' ca
t live-restored '0:again' exec ca echo again
t stop '0:*' stop -t 1 ca
t exited '0:exited 137' inspect -f '{{.State.Status}} {{.State.ExitCode}}' ca
t restart '0:*' start ca
t kill '0:*' kill ca
t rm '0:*' rm ca
t commit-run '0:data' run --rm $N made cat /tmp/f
t tmpfs '0:*tmpfs*' run --rm $N --tmpfs /tmp/x $I cat /proc/mounts
t read-only '1:*' run --rm $N --read-only $I sh -c 'echo x >/x'
t volume '0:data' run --rm $N -v $D/f:/etc/f:ro $I cat /etc/f
t named-volume '0:kept' run --rm $N -v vol:/v $I sh -c 'echo kept >/v/f; cat /v/f'
t volume-again '0:kept' run --rm $N -v vol:/v $I cat /v/f
t user '0:5' run --rm $N -u 5 $I sh -c 'id -u'
t cap-drop '0:*0000000000000000*' run --rm $N --cap-drop all $I sh -c "$CAPS"
t seccomp '1:*' run --rm $N --security-opt seccomp=$D/deny.json $I mkdir /tmp/d
t limits '0:33554432*' run --rm $N -m 32m --cpus .5 --pids-limit 20 $I cat /sys/fs/cgroup/memory/memory.limit_in_bytes
t ulimit '0:77' run --rm $N --ulimit nofile=77 $I sh -c 'ulimit -n'
t device '0:*' run --rm $N --device /dev/zero:/dev/nothing $I ls -l /dev/nothing
lacks_capabilities && [ $which = stable ] && skip privileged "20.10 asks for CAP_SYS_RESOURCE, which this machine lacks" ||
    t privileged '0:hi' run --rm $N --privileged $I echo hi
t oom '137:*' run --rm $N -m 8m --memory-swap 8m $I sh -c "$HOG"
t init '0:*docker-init*' run --rm $N --init $I cat /proc/1/cmdline
t health '0:*' run -d --name hc $N --health-cmd 'test -e /up' --health-interval 1s --health-retries 1 $I sleep 1000
wait_for unhealthy inspect -f '{{.State.Health.Status}}' hc
t unhealthy '0:unhealthy' inspect -f '{{.State.Health.Status}}' hc
t exec-up '0:*' exec hc touch /up
wait_for healthy inspect -f '{{.State.Health.Status}}' hc
t healthy '0:healthy' inspect -f '{{.State.Health.Status}}' hc
t rm-health '0:*' rm -f hc
t restart-policy '0:*' run -d --name rr --restart on-failure:2 $N $I sh -c 'exit 4'
wait_for '2 4' inspect -f '{{.RestartCount}} {{.State.ExitCode}}' rr
t restarted '0:2 4' inspect -f '{{.RestartCount}} {{.State.ExitCode}}' rr
t rm-f '0:*' rm -f rr
t host-net '0:hi' run --rm --network host $I echo hi
t exec-it '0:*/dev/pts/0*' run --rm -t $N $I sh -c 'ls -l /proc/self/fd/0'
t bridge '0:*' run -d --name net -p 8080:80 $I sh -c 'while :; do echo answer | nc -l -p 80; done'
t bridge-exec '0:*eth0*' exec net cat /proc/net/dev
t_own published answer busybox nc 127.0.0.1 8080
t network '0:*' network create mine
t network-dns '0:*172.*' run --rm --network mine --name net2 $I nslookup net2
t container-net '0:*eth0*' run --rm --network container:net $I cat /proc/net/dev
t rm-bridge '0:*' rm -f net
t rm-network '0:*' network rm mine
if [ "$(command -v criu)" ] && criu check >/dev/null 2>&1; then
    # Of a restored container Docker 28 asks for the network namespace before there is one: the host's then.
    # What sleeps is woken by it: criu ends a nanosleep(2) with EINTR.
    t run-cr '0:*' run -d --name cr --network host $I sh -c 'while :; do sleep 1; done'
    t checkpoint '0:*' checkpoint create cr one
    # Docker stores the same content again, which containerd has from the checkpoint, and calls that an error.
    ctr --address $D/csock --namespace moby content ls -q | xargs ctr --address $D/csock --namespace moby content rm >/dev/null
    t restore '0:*' start --checkpoint one cr
    t restored '0:running' inspect -f '{{.State.Status}}' cr
    t rm-cr '0:*' rm -f cr
fi
DOCKER_BUILDKIT=0 t build '0:*' build -q $N -t b ctx
t built '0:built' run --rm $N b cat /b
if [ $which = sid ]; then
    DOCKER_BUILDKIT=1 t buildkit '0:*' build -q --no-cache $N -t k ctx
    t buildkit-built '0:built' run --rm $N k cat /b
    t_own buildkit-by-dhow run cat called
    DOCKER_BUILDKIT=1 t buildkit-fails '1:*exit code: 3*' build --no-cache $N fails
fi
t tag '0:*' tag $I busybox
doc_run docker.md
t save '0:*' save -o $D/s.tar b
t left-containers '0:' ps -aq
kill $DP; wait $DP || true
rm -f pid dsock
# The user must be known, and have ranges.
for file in passwd group subuid subgid; do cp /etc/$file . 2>/dev/null || touch $file; done
echo 'hold:x:100000:100000::/:/bin/false' >>passwd
echo 'hold:x:100000:' >>group
echo 'hold:100000:65536' | tee -a subuid >>subgid
for file in passwd group subuid subgid; do [ -e /etc/$file ] && mount --bind $file /etc/$file; done
start_dockerd --userns-remap hold
t userns-load '0:*' load -i image.tar
t userns '0:*100000*' run --rm $N $I cat /proc/self/uid_map
t userns-host '0:*4294967295*' run --rm $N --userns host $I cat /proc/self/uid_map
t userns-volume '0:root' run --rm $N -v other:/v $I sh -c 'echo root >/v/f; cat /v/f'
kill $DP; wait $DP || true
left=$(pgrep -fc "containerd-shim.*$D/csock" || true)
if [ "$left" = 0 ]; then echo "ok   left-shims"; else echo "FAIL left-shims $left"; failed=1; fi
kill $CP; wait || true
DP=
find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
[ $which = sid ] && exit $failed
umount -R -l root exec/netns/default 2>/dev/null || true
cd /; rm -rf "$D"
exit $failed
