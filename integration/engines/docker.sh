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
N="--network none" DIR=$D PAGE=docker.md FORCE= NOT_FOUND='127:*' LACKS=userns
[ $which = sid ] || LACKS="$LACKS run-cr checkpoint restore restored rm-cr"
once() { docker_once "$@"; }
begin() { docker_begin "$@"; }
inside() { docker_inside "$@"; }
inside_words() { echo exec -it $1 sh; }
terminal_words() { echo run --rm -t $N $I; }
state_of() { docker_state_of "$@"; }
limits_of() { docker_limits_of "$@"; }
words() {
    case $1 in
    health) echo --health-cmd /bin/up --health-interval 1s --health-retries 1 ;;
    *) docker_words "$1" ;;
    esac
}
health_of() {
    wait_for $2 client inspect -f '{{.State.Health.Status}}' $1
    client inspect -f '{{.State.Health.Status}}' $1
}
does() {
    what=$1
    case $what in
    checkpoint) client checkpoint create $2 one ;;
    restore)
        # Docker stores the same content again, which containerd has from the checkpoint, and calls that an error.
        ctr --address $D/csock --namespace moby content ls -q |
            xargs ctr --address $D/csock --namespace moby content rm >/dev/null
        client start --checkpoint one $2
        ;;
    *) docker_does "$@" ;;
    esac
}
build() { DOCKER_BUILDKIT=0 client build "$@"; }
restart_daemon() {
    kill -9 $DP; wait $DP 2>/dev/null || true
    rm -f pid dsock
    start_dockerd
}
! lacks_capabilities || [ $which = sid ] ||
    SKIP_PRIVILEGED="20.10 asks for CAP_SYS_RESOURCE, which this machine lacks"
check_life
check_options
check_watch
check_networks
# Of a restored container Docker 28 asks for the network namespace before there is one: the host's then.
check_checkpoint
check_images
if [ $which = sid ]; then
    buildkit() { DOCKER_BUILDKIT=1 client build "$@"; }
    t buildkit '0:*' buildkit -q --no-cache $N -t k ctx
    t buildkit-built '0:built' client run --rm $N k cat /b
    t_own buildkit-by-dhow run cat called
    t buildkit-fails '1:*exit code: 3*' buildkit --no-cache $N fails
fi
kill $DP; wait $DP || true
rm -f pid dsock
# The user must be known, and have ranges.
for file in passwd group subuid subgid; do cp /etc/$file . 2>/dev/null || touch $file; done
echo 'hold:x:100000:100000::/:/bin/false' >>passwd
echo 'hold:x:100000:' >>group
echo 'hold:100000:65536' | tee -a subuid >>subgid
for file in passwd group subuid subgid; do [ -e /etc/$file ] && mount --bind $file /etc/$file; done
start_dockerd --userns-remap hold
LACKS=
t userns-load '0:*' does load image.tar
t userns '0:*100000*' once -- cat /proc/self/uid_map
t userns-host '0:*4294967295*' once --userns host -- cat /proc/self/uid_map
t userns-volume '0:root' once -v other:/v -- sh -c 'echo root >/v/f; cat /v/f'
kill $DP; wait $DP || true
left left-shims "[c]ontainerd-shim.*$D/csock"
kill $CP; wait || true
DP=
find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
[ $which = sid ] && exit $failed
umount -R -l root exec/netns/default 2>/dev/null || true
cd /; rm -rf "$D"
exit $failed
