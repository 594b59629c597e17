//! Which paths are an engine's admin endpoints, however they are spelled.
//!
//! A path is read the way the most lenient engine might: percent-decoded until it stops changing,
//! backslashes and semicolons as separators, letter case ignored, dot segments resolved.
//! Distinctive endpoint names are refused anywhere in a path, so that a mount prefix does not open
//! a door; everyday words only where an engine serves them.
//!
//! Invariant: the raw path goes to the engine unchanged; this module only says no.

/// Names that no inference endpoint shares: refused as any segment.
const DISTINCTIVE: &[&str] = &[
    // mistral.rs, hone and vLLM: adapters.
    "load_lora_adapter",
    "unload_lora_adapter",
    "lora_adapters",
    "load_lora_adapter_from_tensors",
    "re_isq",
    // llama.cpp.
    "lora-adapters",
    // vLLM in development mode.
    "collective_rpc",
    "is_paused",
    "is_sleeping",
    "wake_up",
    "reset_prefix_cache",
    "reset_mm_cache",
    "reset_encoder_cache",
    "init_weight_transfer_engine",
    "update_weights",
    "scale_elastic_ep",
    "is_scaling_elastic_ep",
    "abort_requests",
    // SGLang.
    "flush_cache",
    "update_weights_from_disk",
    "update_weights_from_tensor",
    "update_weights_from_distributed",
    "update_weights_from_ipc",
    "update_weight_version",
    "init_weights_update_group",
    "destroy_weights_update_group",
    "init_weights_send_group_for_remote_instance",
    "send_weights_to_remote_instance",
    "get_weights_by_name",
    "release_memory_occupation",
    "resume_memory_occupation",
    "pause_generation",
    "continue_generation",
    "abort_request",
    "set_internal_state",
    "configure_logging",
    "start_profile",
    "stop_profile",
    "start_expert_distribution_record",
    "stop_expert_distribution_record",
    "dump_expert_distribution_record",
    "clear_hicache_storage_backend",
    "freeze_gc",
];

/// Everyday words: refused only as `/<word>` or `/<prefix>/<word>` (and below, for those with
/// sub-paths).
const EVERYDAY: &[&str] =
    &["pause", "resume", "sleep", "wake", "slots", "props", "server_info", "shutdown", "admin"];

/// Rounds of percent-decoding; a path that still changes after them is refused as hostile.
const DECODE_ROUNDS_MAX: usize = 4;

/// Whether a raw request target (origin or absolute form, with or without a query) is an admin
/// endpoint.
pub fn is_admin(raw_target: &[u8]) -> bool {
    let mut path = origin_path(raw_target).to_ascii_lowercase();
    for _ in 0..DECODE_ROUNDS_MAX {
        if names_admin(&path) {
            return true;
        }
        let decoded = percent_decode(&path).to_ascii_lowercase();
        if decoded == path {
            return false;
        }
        path = decoded;
    }
    true
}

/// The path of a target, without scheme, authority and query.
fn origin_path(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|b| *b == b'?').unwrap_or(target.len());
    let target = &target[..end];
    let after_scheme = match target.windows(3).position(|w| w == b"://") {
        Some(at) if !target.starts_with(b"/") => &target[at + 3..],
        _ => return target,
    };
    let slash = after_scheme.iter().position(|b| *b == b'/');
    slash.map_or(&b"/"[..], |at| &after_scheme[at..])
}

fn names_admin(path: &[u8]) -> bool {
    let mut resolved: Vec<&[u8]> = Vec::new();
    for segment in path.split(|b| matches!(b, b'/' | b'\\' | b';' | b'#' | b'?')) {
        let segment = trim(segment);
        if DISTINCTIVE.iter().any(|word| word.as_bytes() == segment) {
            return true;
        }
        match segment {
            b"" | b"." => {}
            b".." => drop(resolved.pop()),
            _ => resolved.push(segment),
        }
    }
    let everyday = |segment: &[u8]| EVERYDAY.iter().any(|word| word.as_bytes() == segment);
    match resolved.as_slice() {
        [first, ..] if everyday(first) => true,
        [_, second] => everyday(second),
        _ => false,
    }
}

/// Without white space and control characters at either end, which some servers drop.
fn trim(segment: &[u8]) -> &[u8] {
    let keep = |b: &u8| *b > b' ' && *b != 0x7f;
    let start = segment.iter().position(keep).unwrap_or(segment.len());
    let end = segment.iter().rposition(keep).map_or(start, |at| at + 1);
    &segment[start..end]
}

fn percent_decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        let decoded = match (byte, tail) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        match decoded {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::is_admin;

    #[test]
    fn admin_endpoints_are_refused_however_they_are_spelled() {
        for target in [
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter?x=1",
            "/v1/lora_adapters",
            "/v1/lora_adapters/",
            "//v1//load_lora_adapter",
            "/V1/Load_LoRA_Adapter",
            "/v1/./load_lora_adapter",
            "/v1/models/../load_lora_adapter",
            "/v1/%6coad_lora_adapter",
            "/v1%2fload_lora_adapter",
            "/v1%252Fload_lora_adapter",
            "/v1/%25256coad_lora_adapter",
            "/v1\\load_lora_adapter",
            "/v1/load_lora_adapter;a=b",
            "/v1/load_lora_adapter%20",
            "/v1/load_lora_adapter%00",
            "/mounted/here/v1/load_lora_adapter",
            "http://other/v1/load_lora_adapter",
            "/pause",
            "/v1/../pause?mode=abort",
            "/v1/pause",
            "/slots/0?action=save",
            "/flush_cache",
            "/update_weights_from_disk",
            "/lora-adapters",
            "/%2525252525252541",
        ] {
            assert!(is_admin(target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn inference_endpoints_pass() {
        for target in [
            "/",
            "/v1/chat/completions",
            "/v1/completions?load_lora_adapter",
            "/v1/models",
            "/v1/models/org%2Fname",
            "/v1/files/pause/content",
            "/health",
            "/v1/embeddings?next=/pause",
            "*",
            "/100%",
            "/caf%c3%a9",
            "http://host/v1/models",
            "http://pause",
        ] {
            assert!(!is_admin(target.as_bytes()), "{target}");
        }
    }
}
