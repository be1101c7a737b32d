#!/bin/sh
# Builds a Debian sid folder with the runtimes and engines that dhow is compared with and
# tried under, and runs commands inside it. Debian stable's own are too old to compare with.
#
#   peers.sh bench              crun and runc, also as $DHOW_PEERS/bin/crun and …/runc, which run
#                               outside the folder, and a static crun built from source
#   peers.sh engines            containerd, podman, buildah, skopeo, umoci; trixie's containerd 1.7
#                               in a folder beside
#   peers.sh docker             dockerd, its client and buildx, and Debian stable's beside the folder
#   peers.sh images             umoci, skopeo, podman, erofs-utils, docker-registry
#   peers.sh conformance        what builds and runs runc's own test suite, and its source
#   peers.sh all                bench, engines and images
#   peers.sh reachable          whether runc's suite and runtime-tools are there, or can be fetched
#   peers.sh path               print the folder
#   peers.sh run CMD [ARG…]     run CMD inside, in a mount namespace of its own
#
# Every step is done once: a stamp in the folder says so. Two callers wait for each other.
# DHOW_PEERS (default /var/tmp/dhow-peers) is where the folder lives.
set -eu

PEERS=${DHOW_PEERS:-/var/tmp/dhow-peers}
SID=$PEERS/sid
SUITE=sid
MIRROR=${DHOW_MIRROR:-http://deb.debian.org/debian}

say() { printf '[peers] %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The mounts die with the namespace: nothing to undo, whatever happens to us.
inside() {
    unshare --mount --propagation private sh -c '
        sid=$1; shift
        for dir in proc sys dev; do mount --rbind "/$dir" "$sid/$dir"; done
        exec chroot "$sid" "$@"' sh "$SID" "$@"
}

apt_inside() {
    inside env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qq -y \
        -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
}

fetch_base() {
    say "debootstrap $SUITE into $SID"
    rm -rf --one-file-system "$SID.new"
    debootstrap --variant=minbase $SUITE "$SID.new" "$MIRROR" >"$PEERS/debootstrap.log" 2>&1 ||
        { tail -n 20 "$PEERS/debootstrap.log" >&2; die "debootstrap failed"; }
}

# The folder as it is before anything is installed: an image for runc's suite.
keep_base() {
    tar -C "$SID.new" --exclude './dev/*' --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' \
        --exclude './usr/share/doc' --exclude './usr/share/locale' -cf "$SID.base.tar.new" .
    mv "$SID.base.tar.new" "$SID.base.tar"
}

bootstrap() {
    [ -e "$SID/.dhow-base" ] && return
    command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
    fetch_base
    [ "$SUITE" != sid ] || keep_base
    # How this machine's apt reaches its mirror (a proxy, a frozen clock) holds inside too.
    cp -L /etc/resolv.conf "$SID.new/etc/resolv.conf"
    for conf in $(grep -Els "Acquire::(http|https|Check-|Retries)" /etc/apt/apt.conf.d/* /etc/apt/apt.conf); do
        cp -L "$conf" "$SID.new/etc/apt/apt.conf.d/"
    done
    # No package may start a service on the host.
    printf '#!/bin/sh\nexit 101\n' >"$SID.new/usr/sbin/policy-rc.d"
    chmod 755 "$SID.new/usr/sbin/policy-rc.d"
    touch "$SID.new/.dhow-base"
    rm -rf --one-file-system "$SID"
    mv "$SID.new" "$SID"
}

# install STAMP PACKAGE…
install() {
    stamp=$SID/.dhow-$1
    shift
    [ -e "$stamp" ] && return
    say "install $*"
    apt_inside update
    apt_inside install "$@" >"$PEERS/apt.log" 2>&1 ||
        { tail -n 20 "$PEERS/apt.log" >&2; die "apt-get install failed"; }
    touch "$stamp"
}

# Distributed binaries that run outside the folder: they find their loader and libraries in it.
loosen() {
    mkdir -p "$PEERS/bin"
    for tool in crun runc; do
        [ "$PEERS/bin/$tool" -nt "$SID/usr/bin/$tool" ] && continue
        cp -L "$SID/usr/bin/$tool" "$SID/tmp/$tool"
        inside patchelf --set-interpreter "$SID/lib64/ld-linux-x86-64.so.2" \
            --set-rpath "$SID/usr/lib/x86_64-linux-gnu" "/tmp/$tool"
        cp "$SID/tmp/$tool" "$PEERS/bin/.$tool"
        touch "$PEERS/bin/.$tool"
        mv "$PEERS/bin/.$tool" "$PEERS/bin/$tool"
    done
}

# crun as its makers release it, static, which starts faster than Debian's build. Debian's source of
# the version in trixie is what its mirrors have; without it, the bench does without.
static_crun() {
    [ -e "$PEERS/bin/crun-static" ] && return
    version=1.21
    install crun-static gcc libc6-dev make autoconf automake libtool pkgconf python3 \
        libcap-dev libseccomp-dev libyajl-dev
    say "build crun $version, static"
    mkdir -p "$SID/crun"
    curl -fsS -o "$SID/crun/crun.tar.gz" "$MIRROR/pool/main/c/crun/crun_$version.orig.tar.gz" &&
        inside sh -ec '
            cd /usr/lib/x86_64-linux-gnu
            # Debian names the static library after its flavour.
            [ -e libyajl.a ] || ln -s libyajl_s.a libyajl.a
            cd /crun
            tar xzf crun.tar.gz
            cd "crun-$0"
            # The release tarball leaves it to git.
            echo "#define GIT_VERSION \"$0\"" >git-version.h
            [ -x configure ] || ./autogen.sh
            ./configure --disable-systemd --disable-criu --disable-dl
            make -j2 CFLAGS=-O3 LDFLAGS=-all-static crun
            strip -o /crun/crun-static crun' "$version" >"$PEERS/crun-static.log" 2>&1 </dev/null &&
        cp "$SID/crun/crun-static" "$PEERS/bin/crun-static" ||
        say "no static crun: see $PEERS/crun-static.log"
}

group_bench() {
    # containers-common has the seccomp profile for the bench.
    install bench crun runc patchelf golang-github-containers-common
    loosen
    static_crun
}
group_engines() {
    install engines containerd podman buildah skopeo umoci iptables nftables iproute2 \
        netavark aardvark-dns passt fuse-overlayfs busybox-static criu tini
}
# Debian testing's containerd, 1.7, in a folder of its own beside sid.
group_trixie() (
    SUITE=trixie SID=$PEERS/trixie
    bootstrap
    install containerd containerd
)
group_docker() {
    install docker docker.io docker-cli
    install buildx docker-buildx
    # Debian stable's, unpacked beside the folder: installed it would start a service.
    [ -e "$PEERS/docker-stable/usr/sbin/dockerd" ] && return
    mkdir -p "$PEERS/docker-stable"
    (cd "$PEERS/docker-stable" && apt-get -qq -o APT::Sandbox::User=root download docker.io && dpkg -x docker.io_*.deb .)
}
group_images() {
    install images umoci skopeo podman erofs-utils docker-registry attr mtree-netbsd
}

group_conformance() {
    # A folder that was made before the image was kept.
    [ -e "$SID.base.tar" ] || [ -e "$SID/conformance/.images" ] ||
        { fetch_base && keep_base && rm -rf --one-file-system "$SID.new"; }
    # The suite starts from Debian's source package: the binary packages do not carry it.
    grep -qs deb-src "$SID/etc/apt/sources.list.d/src.list" ||
        echo "deb-src $MIRROR sid main" >"$SID/etc/apt/sources.list.d/src.list"
    install conformance runc bats gawk jq uidmap criu iproute2 iptables busybox-static \
        bsdutils procps gcc libc6-dev make golang-go pkgconf libseccomp-dev dpkg-dev \
        util-linux kmod xz-utils
    [ -e "$SID/.dhow-conformance-deps" ] && return
    say "build-dep runc"
    apt_inside build-dep runc >>"$PEERS/apt.log" 2>&1 ||
        { tail -n 20 "$PEERS/apt.log" >&2; die "apt-get build-dep failed"; }
    touch "$SID/.dhow-conformance-deps"
}

reachable() {
    [ -e "$SID/conformance/.images" ] && [ -e "$SID/validation/.built" ] && return
    mkdir -p "$PEERS"
    timeout 60 /usr/lib/apt/apt-helper download-file "$MIRROR/dists/$SUITE/InRelease" "$PEERS/InRelease" >/dev/null 2>&1
}

# Builders of the folder wait for each other.
locked() {
    mkdir -p "$PEERS"
    exec 9>"$PEERS/lock"
    flock 9
    bootstrap
    for step in "$@"; do "$step"; done
    exec 9>&-
}

case ${1-} in
bench) locked group_bench ;;
engines) locked group_engines group_trixie ;;
docker) locked group_docker ;;
images) locked group_images ;;
conformance) locked group_conformance ;;
all) locked group_bench group_engines group_trixie group_images ;;
reachable) reachable ;;
path) printf '%s\n' "$SID" ;;
run)
    shift
    [ -e "$SID/.dhow-base" ] || die "there is no folder yet: run peers.sh bench or engines"
    inside "$@"
    ;;
*)
    sed -n '2,18s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
