#!/usr/bin/env bash
# Every test, with the real engine, the real small model and real clients (PyPI and npm).
# Arguments go to `cargo test`, e.g. `deploy/test.sh -p hone-proxy`.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cargo build --release --workspace --locked
# The model and the clients are obtained once; these steps do nothing the next time.
HONE_MODEL_DIR="$("$CARGO_TARGET_DIR/release/hone" model get smollm2-135m)"
export HONE_MODEL_DIR
export HONE_PYTHON="$cache/venv/bin/python" HONE_NODE_MODULES="$cache/node"
clients=deploy/hone/tests/clients
if ! cmp -s "$clients/requirements.txt" "$cache/venv/requirements.txt"; then
    python3 -m venv "$cache/venv" || { need pyvenv python3-venv; python3 -m venv "$cache/venv"; }
    "$cache/venv/bin/pip" -q install -r "$clients/requirements.txt"
    cp "$clients/requirements.txt" "$cache/venv/"
fi
# What the agents' environments run in; with these variables their tests fail instead of being skipped.
need bwrap bubblewrap
need chromium chromium
export HONE_BIN="$CARGO_TARGET_DIR/release/hone" HONE_CHROMIUM=1
need node nodejs
if ! cmp -s "$clients/package.json" "$cache/node/installed.json"; then
    need npm npm
    mkdir -p "$cache/node" && cp "$clients/package.json" "$cache/node/"
    npm --prefix "$cache/node" install --silent --no-audit --no-fund --no-package-lock
    cp "$clients/package.json" "$cache/node/installed.json"
fi
if [ "$#" -gt 0 ]; then
    exec cargo test --release --locked "$@"
fi
exec cargo test --release --workspace --locked --no-fail-fast
