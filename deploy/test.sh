#!/usr/bin/env bash
# Every test, with the real engine, the real small model and the real `openai` client.
# Arguments go to `cargo test`, e.g. `deploy/test.sh -p hone-proxy`.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cargo build --release --workspace --locked
# The model and the client are obtained once; both steps do nothing the next time.
HONE_MODEL_DIR="$("$CARGO_TARGET_DIR/release/hone" model get smollm2-135m)"
export HONE_MODEL_DIR
export HONE_PYTHON="$cache/venv/bin/python"
if ! "$HONE_PYTHON" -c 'import openai' 2>/dev/null; then
    python3 -m venv "$cache/venv" || { need pyvenv python3-venv; python3 -m venv "$cache/venv"; }
    "$cache/venv/bin/pip" -q install 'openai==3.54.0'
fi
if [ "$#" -gt 0 ]; then
    exec cargo test --release --locked "$@"
fi
exec cargo test --release --workspace --locked --no-fail-fast
