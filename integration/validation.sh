#!/bin/bash
# Runs the validation programs of runtime-tools, the specification's own, against dhow, or against
# the runtime whose path is given. A program is clean when it ends well and nothing in it is "not ok".
#
#   validation.sh [RUNTIME]
#
# The source is Debian's tarball of it, built in the sid folder of peers.sh with Debian's Go
# packages; what Debian lacks of them is validation/tap.go. The exit status is 0 when what is not
# clean is in integration/validation.expected; some of that is a matter of luck.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
peers=$here/peers.sh
sid=$("$peers" path)
runtime=$(realpath "${1:-$here/../bin/dhow}")
version=0.9.0.109.ge931285
package=golang-github-opencontainers-runtime-tools
work=$sid/validation
source=$work/go/src/github.com/opencontainers/runtime-tools

build() {
    mkdir -p "$work/go/src/github.com/opencontainers" "$work/go/src/github.com/mndrix/tap-go"
    curl -fsS "${DHOW_MIRROR:-http://deb.debian.org/debian}/pool/main/g/$package/${package}_$version.orig.tar.xz" |
        tar -xJ -C "$work"
    rm -rf "$source" && mv "$work/$package-$version" "$source"
    cp "$here/validation/tap.go" "$work/go/src/github.com/mndrix/tap-go/"
    # go-selinux has moved the function since.
    sed -i 's#"github.com/opencontainers/selinux/go-selinux/label"#label "github.com/opencontainers/selinux/go-selinux"#' \
        "$source/cmd/runtimetest/main.go"
    "$peers" run sh -ec '
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq -y -o APT::Sandbox::User=root --no-install-recommends install \
            golang-github-google-uuid-dev golang-github-hashicorp-go-multierror-dev \
            golang-github-mrunalp-fileutils-dev golang-github-sirupsen-logrus-dev \
            golang-github-opencontainers-specs-dev golang-github-blang-semver-dev \
            golang-github-opencontainers-selinux-dev golang-gocapability-dev golang-golang-x-sys-dev
        cd /validation/go/src/github.com/opencontainers/runtime-tools
        export GO111MODULE=off GOPATH=/validation/go:/usr/share/gocode GOFLAGS=-buildvcs=false
        export GOCACHE=/validation/cache HOME=/root
        make runtimetest validation-executables' >"$work/build.log" 2>&1 </dev/null ||
        { tail "$work/build.log" >&2; exit 1; }
    touch "$work/.built"
}

# One line for each program that is not clean, with the first thing that is not.
run_all() {
    cd "$source"
    local program name text
    for program in validation/*/*.t; do
        name=$(basename "$program" .t)
        if ! text=$(RUNTIME=$runtime timeout 60 "./$program" 2>&1 </dev/null) ||
            grep -q '^not ok' <<<"$text" || ! grep -qE '^(ok|1\.\.0)' <<<"$text"; then
            printf '%s\t%s\n' "$name" "$(grep -m1 '^not ok' <<<"$text" | cut -c1-150)"
        fi
    done
}

# One build at a time.
[ -e "$work/.built" ] || "$peers" conformance
mkdir -p "$work"
exec 8>"$work/lock"
flock 8
[ -e "$work/.built" ] || build
exec 8>&-
export -f run_all
export source runtime
list=$(unshare --mount --net --ipc --propagation private bash -c run_all)
printf '%s\n' "$list"
all=$(find "$source/validation" -name '*.t' | wc -l)
echo "$((all - $(grep -c . <<<"$list"))) of $all programs are clean"
news=$(comm -23 <(cut -f1 <<<"$list" | sort) <(grep -v '^#' "$here/validation.expected" | cut -f1 | sort))
[ -z "$news" ] || { echo "not clean, and not expected: $news"; exit 1; }
echo "as expected"
