#!/bin/sh
# Builds the image that the bench and the comparison with umoci unpack: six layers, more than
# 30,000 entries, out of Debian's packages, as an OCI layout with gzip layers (DIR/gzip) and the
# same with zstd layers (DIR/zstd). Beside it lie the plain archives (DIR/N.tar).
#
#   image.sh DIR       does nothing when DIR is complete
#
# Packages come from the sid folder of integration/peers.sh, which must be there.
set -eu

DIR=${1:?usage: image.sh DIR}
PEERS=$(dirname "$0")/../integration/peers.sh
SID=$($PEERS path)
[ -e "$DIR/.complete" ] && exit
[ -e "$SID/.dhow-base" ] || { echo "image.sh: no sid folder: run integration/peers.sh images" >&2; exit 1; }

rm -rf --one-file-system "$DIR"
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
DEBS=$SID/var/cache/dhow-image
mkdir -p "$DEBS/partial"

# What is installed in the folder does not count: every layer brings all that the ones below lack.
fetch() {
    "$PEERS" run apt-get -qq -y -o APT::Sandbox::User=root -o Dir::State::status=/dev/null \
        -o Dir::Cache::archives=/var/cache/dhow-image --no-install-recommends \
        --download-only install "$@" >"$DIR/apt.log" 2>&1 </dev/null ||
        { tail -n 20 "$DIR/apt.log" >&2; exit 1; }
}

number=0
# pack [OPTION…]: what is in the tree becomes the next layer
pack() {
    number=$((number + 1))
    tar --sort=name --numeric-owner --xattrs --format=posix --pax-option=delete=atime,delete=ctime \
        "$@" -C "$DIR/tree" -cf "$DIR/$number.tar" .
    rm -rf --one-file-system "$DIR/tree"
}

# layer PACKAGE…: one layer of these and all that they need
layer() {
    rm -f "$DEBS"/*.deb
    fetch "$@"
    mkdir "$DIR/tree"
    for deb in "$DEBS"/*.deb; do
        name=$(basename "$deb")
        grep -qxF "$name" "$DIR/seen" 2>/dev/null && continue
        echo "$name" >>"$DIR/seen"
        dpkg-deb --fsys-tarfile "$deb" |
            tar -x --numeric-owner --keep-directory-symlink --xattrs -C "$DIR/tree"
    done
    pack
}

layer base-files base-passwd bash coreutils dash dpkg apt tzdata passwd login mount
layer gcc g++ make
layer python3 libpython3-stdlib python3-setuptools
layer golang-go git
layer vim cmake perl libboost-dev
rm -f "$DEBS"/*.deb
# What a person removes at the end; with an attribute, which no package of Debian's has.
mkdir -p "$DIR/tree/usr/share/doc" "$DIR/tree/usr/share/man" "$DIR/tree/usr/share/bash-completion"
touch "$DIR/tree/usr/share/doc/.wh..wh..opq" "$DIR/tree/usr/share/man/.wh.man1" \
    "$DIR/tree/usr/share/bash-completion/.wh.completions"
pack --pax-option=SCHILY.xattr.user.note:=kept

sha() { sha256sum "$1" | cut -d ' ' -f 1; }

# put LAYOUT FILE: as a blob; prints "DIGEST SIZE"
put() {
    digest=$(sha "$2")
    size=$(stat -c %s "$2")
    mv "$2" "$1/blobs/sha256/$digest"
    echo "$digest $size"
}

# layout NAME SUFFIX COMMAND…: the image with layers that COMMAND compresses
layout() {
    out=$DIR/$1
    suffix=$2
    shift 2
    mkdir -p "$out/blobs/sha256"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
    diffs= layers= each=1
    while [ "$each" -le "$number" ]; do
        "$@" <"$DIR/$each.tar" >"$DIR/blob"
        diffs="$diffs,\"sha256:$(sha "$DIR/$each.tar")\""
        put "$out" "$DIR/blob" >"$DIR/put"
        read -r digest size <"$DIR/put"
        type=application/vnd.oci.image.layer.v1.tar+$suffix
        layers="$layers,{\"mediaType\":\"$type\",\"digest\":\"sha256:$digest\",\"size\":$size}"
        each=$((each + 1))
    done
    arch=$(dpkg --print-architecture)
    printf '{"created":"2026-01-01T00:00:00Z","architecture":"%s","os":"linux","config":{"Cmd":["/bin/bash"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$arch" "${diffs#,}" >"$DIR/json"
    put "$out" "$DIR/json" >"$DIR/put"
    read -r digest size <"$DIR/put"
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
        "$digest" "$size" "${layers#,}" >"$DIR/json"
    put "$out" "$DIR/json" >"$DIR/put"
    read -r digest size <"$DIR/put"
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
        "$digest" "$size" >"$out/index.json"
}

layout gzip gzip gzip -6n
layout zstd zstd zstd -q -3
rm -f "$DIR/put" "$DIR/seen" "$DIR/apt.log"
touch "$DIR/.complete"
