#!/bin/sh
# Drives podman and buildah with dhow as their runtime, in mount and network namespaces of their own, and
# prints a line for each feature: "ok NAME" or "FAIL NAME exit code: what was said". Ends with 1 if one
# failed.
#
#   podman.sh sid       those of the folder that `integration/peers.sh engines` makes
#   podman.sh stable    the installed ones
set -eu
which=${1:?sid or stable}
cd "$(dirname "$0")"
. ./common.sh
if [ $which = sid ]; then
    enter podman.sh "$@"
else
    [ "${DHOW_INSIDE-}" ] ||
        DHOW_INSIDE=yes exec ../layout.sh $(layout) unshare --mount --net --propagation private "$PWD/podman.sh" "$@"
    ip link set lo up
    for dir in run mnt usr/local/bin; do mount -t tmpfs tmpfs /$dir; done
    cp "$W"/bin/* "$S/usr/bin/docker-init" /usr/local/bin
    D=/mnt
    cd $D
fi
mkdir -p /run/lock ctx
make_image
doc_block podman.md toml 1 >containers.conf
# Its usual limits are higher than what a machine without CAP_SYS_RESOURCE may set.
cat >>containers.conf <<X
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
X
# What the page's table goes on with.
sed -i '/^\[engine\]$/a cgroup_manager = "cgroupfs"\nevents_logger = "file"' containers.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/root"\nrunroot = "/run/podman"\n' $D >storage.conf
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 CONTAINERS_CONF=$D/containers.conf CONTAINERS_STORAGE_CONF=$D/storage.conf
ENGINE=podman
t version '0:dhow' client info --format '{{.Host.OCIRuntime.Name}}'
version=$(podman --version)
N="--network none" DIR=$D PAGE=podman.md FORCE="-t 0" NOT_FOUND='127:*' LACKS= init=/usr/bin/docker-init
if [ $which = sid ]; then
    echo "engine Podman ${version##* }, Buildah $(buildah --version | cut -d' ' -f3)"
else
    echo "engine Podman ${version##* }"
    init=/usr/local/bin/docker-init
    # Its CNI plugins know no names, and the page's lines are Buildah's as well.
    LACKS="network-dns docs"
    # Beside a limit that is asked for it sets its own, which are higher.
    ! lacks_capabilities || LACKS="$LACKS ulimit"
fi
once() { docker_once "$@"; }
begin() { docker_begin "$@"; }
inside() { docker_inside "$@"; }
inside_words() { echo exec -it $1 sh; }
terminal_words() { echo run --rm -t $N $I; }
state_of() { docker_state_of "$@"; }
limits_of() { docker_limits_of "$@"; }
words() {
    case $1 in
    # Without systemd nobody starts its timers.
    health) echo --health-cmd /bin/up --health-interval disable --health-retries 1 ;;
    init) echo --init --init-path $init ;;
    userns) echo --uidmap 0:100000:5000 --gidmap 0:100000:5000 ;;
    *) docker_words "$1" ;;
    esac
}
health_of() {
    client healthcheck run $1 >/dev/null && state=healthy || state=unhealthy
    echo $state
}
does() {
    case $1 in
    checkpoint) client container checkpoint $2 ;;
    restore) client container restore $2 ;;
    *) docker_does "$@" ;;
    esac
}
build() { client build "$@"; }
check_life
check_options
check_watch
check_networks
# The host's network: into one of its own, whose lo is up, criu sometimes finds "Address already assigned".
check_checkpoint
check_images
t pod '0:*' client pod create --name pd --infra-command 'sleep 1000' --infra-image $I $N
t pod-run '0:hi' client run --rm --pod pd $I echo hi
t pod-rm '0:*' client pod rm -f -t 0 pd
if [ $which = sid ]; then
    ENGINE=buildah
    isolation="--isolation oci --runtime /usr/local/bin/dhow"
    t buildah-from '0:*' client from --name w $I
    t buildah-run '0:hi' client run $isolation $N w echo hi
    t buildah-run-code '3:*' client run $isolation $N w sh -c 'exit 3'
    t buildah-volume '0:data' client run $isolation $N -v /mnt/f:/etc/f:ro w cat /etc/f
    t buildah-user '0:5' client run $isolation $N --user 5 w id -u
    t buildah-copy '0:*' client copy w /mnt/f /f
    t buildah-build '0:*' client bud -q $isolation $N -t c /mnt/ctx
    t buildah-commit '0:*' client commit -q w d
    t buildah-rm '0:*' client rm w
fi
said=$(ls /run/dhow 2>/dev/null) || true
code=0
judge left-state 0:
left left-monitors "[c]onmon.*$D"
find /sys/fs/cgroup -depth -type d \( -path '*/libpod_parent*' -o -path '*/buildah*' \) -exec rmdir {} + 2>/dev/null || true
exit $failed
