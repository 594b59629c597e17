#!/usr/bin/env bash
# From a fresh clone to a model that has learned: build, obtain the small model, run the demo.
# Arguments go to `hone demo`, e.g. `deploy/demo.sh --json`.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
echo "building (the first time takes 15 to 30 minutes on two cores) …" >&2
cargo build --release --workspace --locked
exec "$CARGO_TARGET_DIR/release/hone" demo "$@"
