# Sourced by demo.sh, test.sh and .ci/run: what the machine must have, and where build outputs go.
# Build outputs live outside the clone, so that a fresh clone on the same machine does not compile the world again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/hone"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"

need() { # need COMMAND DEBIAN_PACKAGE
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $2 …" >&2
        apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$2" >/dev/null
    else
        echo "hone needs '$1': install your system's package for it (Debian: apt-get install $2)" >&2
        exit 2
    fi
}

need cmake cmake           # pingora builds zlib-ng with it
need cc build-essential    # SQLite, zstd, ring and jemalloc are C
need make build-essential
need python3 python3       # `hone model get` asks pip for the small model
if ! command -v cargo >/dev/null; then
    echo "hone needs Rust 1.89 or newer: https://rustup.rs" >&2
    exit 2
fi
