//! Which paths are an engine's admin endpoints, however they are spelled.
//!
//! A path is read the way the most lenient engine might: percent-decoded until it stops changing,
//! backslashes and semicolons as separators, letter case ignored, dot segments resolved.
//! Distinctive endpoint names are refused anywhere in a path, so that a mount prefix does not open
//! a door; everyday words only where an engine serves them. Engines get new endpoints faster than
//! this list: an operator can say which paths pass instead (`paths_allowed`).
//!
//! Invariant: the raw path goes to the engine unchanged; this module only says no.

use http::Method;

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
    "start_weight_update",
    "start_draft_weight_update",
    "finish_weight_update",
    "weight_checker",
    "fault_tolerance",
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
    "begin_weight_update",
    "end_weight_update",
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
    "hicache",
    "freeze_gc",
    "slow_down",
    "weights_checker",
    "add_external_corpus",
    "remove_external_corpus",
    "list_external_corpora",
    "dumper",
    "set_trace_level",
];

/// Everyday words: refused only as `/<word>` and below, or as `/<prefix>/<word>`.
const EVERYDAY: &[&str] = &["pause", "resume", "sleep", "wake", "props", "server_info", "shutdown"];

/// Everyday words of endpoints with sub-paths: refused below `/<prefix>/<word>`, too.
const WITH_SUBPATHS: &[&str] = &["slots", "admin", "calibration"];

/// Words that are an operation only below another.
const OPERATIONS: &[(&str, &[&str])] =
    &[("models", &["load", "unload", "reload", "tune"]), ("system", &["doctor"])];

/// What nearly every request asks for, spelled as nearly every client does.
const ASKED_MOST: &[&[u8]] =
    &[b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages"];

/// Rounds of percent-decoding; a path that still changes after them is refused as hostile.
const DECODE_ROUNDS_MAX: usize = 4;

/// Whether a raw request target (origin or absolute form, with or without a query) is an admin
/// endpoint.
pub fn is_admin(method: &Method, raw_target: &[u8]) -> bool {
    if ASKED_MOST.contains(&raw_target) {
        return false;
    }
    in_some_reading(origin_path(raw_target), |path| {
        let path = path.to_ascii_lowercase();
        names_admin(method, &path) || lists_models(&path) && asks_to_reload(raw_target)
    })
}

/// Whether `wanted` holds in some reading of the percent-encoding, or there is no last one.
fn in_some_reading(encoded: &[u8], wanted: impl Fn(&[u8]) -> bool) -> bool {
    let mut reading = encoded.to_vec();
    for _ in 0..DECODE_ROUNDS_MAX {
        if wanted(&reading) {
            return true;
        }
        let decoded = percent_decode(&reading);
        if decoded == reading {
            return false;
        }
        reading = decoded;
    }
    true
}

/// Whether a target lies at or below one of `prefixes`, whole segments compared, in every reading
/// of its percent-encoding. Dot segments, which servers read differently, lie nowhere. Without
/// prefixes everything is allowed.
pub fn is_allowed(raw_target: &[u8], prefixes: &[String]) -> bool {
    if prefixes.is_empty() {
        return true;
    }
    !in_some_reading(origin_path(raw_target), |path| {
        !prefixes.iter().any(|prefix| is_below(path, prefix.as_bytes()))
    })
}

fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let named = |path| segments(path).filter(|segment| !segment.is_empty());
    let mut found = named(path);
    !segments(path).any(|segment| matches!(segment, b"." | b".."))
        && named(prefix).all(|wanted| found.next() == Some(wanted))
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

fn names_admin(method: &Method, path: &[u8]) -> bool {
    let mut resolved: Vec<&[u8]> = Vec::new();
    for segment in segments(path) {
        if is_in(DISTINCTIVE, segment) {
            return true;
        }
        match segment {
            b"" | b"." => {}
            b".." => drop(resolved.pop()),
            _ => resolved.push(segment),
        }
    }
    match resolved.as_slice() {
        [first, ..] if is_in(EVERYDAY, first) || is_in(WITH_SUBPATHS, first) => true,
        [_, second, ..] if is_in(WITH_SUBPATHS, second) => true,
        [_, second] if is_in(EVERYDAY, second) => true,
        all => all.windows(2).any(is_operation) || changes_models(method, all),
    }
}

fn is_operation(pair: &[&[u8]]) -> bool {
    let [of, word] = pair else { return false };
    OPERATIONS.iter().any(|(name, words)| name.as_bytes() == *of && is_in(words, word))
}

/// Whether a request adds, changes or removes a model: `POST` and `DELETE` on `/models` of
/// llama.cpp's router, and OpenAI's `DELETE /v1/models/{id}`, which owners of an organization may
/// send. A `POST` below `/models` may ask a model for an answer.
fn changes_models(method: &Method, path: &[&[u8]]) -> bool {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => false,
        Method::POST => path.last() == Some(&&b"models"[..]),
        _ => path.contains(&&b"models"[..]),
    }
}

fn lists_models(path: &[u8]) -> bool {
    segments(path).any(|segment| segment == b"models")
}

/// Whether a target has the key with which a `GET` makes llama.cpp's router read its models again,
/// in any reading of its percent-encoding.
fn asks_to_reload(raw_target: &[u8]) -> bool {
    in_some_reading(raw_target, |target| {
        let target = target.to_ascii_lowercase();
        let mut pairs = target.split(|b| matches!(b, b'?' | b'&' | b';')).skip(1);
        pairs.any(|pair| pair.split(|b| *b == b'=').next().map(trim) == Some(b"reload"))
    })
}

fn is_in(words: &[&str], segment: &[u8]) -> bool {
    words.iter().any(|word| word.as_bytes() == segment)
}

/// The segments of a path as the most lenient reader separates them.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| matches!(b, b'/' | b'\\' | b';' | b'#' | b'?')).map(trim)
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
    use http::Method;

    use super::{is_admin, is_allowed};

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
            "/llama/slots/0?action=erase",
            "/engine/admin/users",
            "/slow_down",
            "/hicache/storage-backend/clear",
            "/sglang/hicache/storage-backend",
            "/weights_checker",
            "/add_external_corpus",
            "/v1/remove_external_corpus",
            "/dumper/start",
            "/models/load",
            "/v1/models/unload",
            "/llama/v1/models/RELOAD",
            "/v1/models/x/..%2ftune",
            "/v1/system/doctor",
            "/calibration/start",
            "/mistral/calibration/apply",
            "/start_weight_update",
            "/start_draft_weight_update",
            "/finish_weight_update",
            "/v1/weight_checker",
            "/fault_tolerance/apply",
            "/begin_weight_update",
            "/end_weight_update",
            "/models?reload=1",
            "/v1/models?reload",
            "/v1/models/?a=b&Reload=",
            "/v1/models?%72eload=1",
            "/v1/models?a=1%26re%256coad=1",
            "/v1/models%3freload=1",
            "http://other/models?reload=0",
            "/v1/models/x?;%20reload=1",
        ] {
            assert!(is_admin(&Method::GET, target.as_bytes()), "{target}");
            assert!(is_admin(&Method::POST, target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn models_are_listed_and_asked_and_not_changed() {
        for (method, target, refused) in [
            ("GET", "/models", false),
            ("HEAD", "/v1/models/load-balancer", false),
            ("OPTIONS", "/v1/models", false),
            ("POST", "/models", true),
            ("POST", "/llama/v1/models/", true),
            ("DELETE", "/models?model=a", true),
            ("DELETE", "/v1/models/ft:a:b", true),
            ("PUT", "/v1/models", true),
            ("get", "/v1/models", true),
            ("POST", "/v1/models/llama:predict", false),
            ("POST", "/v2/models/llama/infer", false),
            ("DELETE", "/v1/files/file-1", false),
            ("DELETE", "/v1/responses/resp_1", false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(is_admin(&method, target.as_bytes()), refused, "{method} {target}");
        }
    }

    #[test]
    fn where_an_operator_says_what_passes_nothing_else_does() {
        let prefixes = ["/v1/chat/completions".to_owned(), "/v1/models".to_owned()];
        for (target, allowed) in [
            ("/v1/chat/completions", true),
            ("/v1/chat/completions/chatcmpl-1/messages?after=/new_admin", true),
            ("//v1/models/org%2Fname", true),
            ("http://host/v1/models", true),
            ("/v1/chat/completions_new", false),
            ("/v1/chat", false),
            ("/V1/models", false),
            ("/new_admin", false),
            ("/v1/models/../../new_admin", false),
            ("/v1/models/%2e%2e/%252e./new_admin", false),
            ("/new_admin/../v1/models", false),
            ("/v1%252fmodels", false),
            ("/v1/models/%2525252525252541", false),
            ("/", false),
            ("*", false),
        ] {
            assert_eq!(is_allowed(target.as_bytes(), &prefixes), allowed, "{target}");
            assert!(is_allowed(target.as_bytes(), &[]), "{target}");
        }
        assert!(is_allowed(b"/anything", &["/".to_owned()]));
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
            "/v1/files/slots/content",
            "/v1/models/status",
            "/v1/models?after=reload&limit=1%2525",
            "/v1/models?preload=1&reloaded=1",
            "/v1/chat/completions?reload=1",
            "/v1/system/info",
            "/health",
            "/v1/embeddings?next=/pause",
            "*",
            "/100%",
            "/caf%c3%a9",
            "http://host/v1/models",
            "http://pause",
        ] {
            assert!(!is_admin(&Method::GET, target.as_bytes()), "{target}");
        }
    }
}
