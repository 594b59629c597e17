//! What may not differ between the direct and the proxied exchange, and what may.
//!
//! May differ: fields that belong to one hop (RFC 9110 §7.6.1) and the framing that they describe,
//! the order of fields with different names, where chunks begin, trailers over HTTP/1 (discarded,
//! as §6.5.1 allows), `Date` (pingora puts its own clock's in its place), and
//! `x-hone-generation` on the way to the engine. `exceptions` has tests for them.

use std::collections::BTreeMap;

use crate::lanes::Got;
use crate::wire::{Fields, Message};

const ONE_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields by lower-case name; each with its names as sent and its values, in order.
pub fn end_to_end(fields: &Fields) -> BTreeMap<String, Vec<(String, String)>> {
    let mut by_name = BTreeMap::<String, Vec<_>>::new();
    for (name, value) in fields {
        let lower = name.to_ascii_lowercase();
        if !ONE_HOP.contains(&lower.as_str()) && lower != "date" {
            let value = value.escape_ascii().to_string();
            by_name.entry(lower).or_default().push((name.clone(), value));
        }
    }
    by_name
}

/// What differs between two answers.
pub fn answers(direct: &Got, through: &Got) -> Vec<String> {
    let mut found = Vec::new();
    let interim = |got: &Got| -> Vec<_> {
        got.interim.iter().map(|m| (m.status(), end_to_end(&m.fields))).collect()
    };
    note(&mut found, "informational responses", &interim(direct), &interim(through));
    // The version is one hop's.
    let line = |got: &Got| got.last.first.split_once(' ').map(|(_, rest)| rest.to_owned());
    note(&mut found, "status line", &line(direct), &line(through));
    let (a, b) = (&direct.last, &through.last);
    note(&mut found, "response headers", &end_to_end(&a.fields), &end_to_end(&b.fields));
    note(&mut found, "whether the response is whole", &a.whole, &b.whole);
    body(&mut found, "response body", &a.body, &b.body);
    found
}

/// What differs between two requests as the engine saw them. `captures`: the proxy may name a
/// generation.
pub fn requests(direct: &[Message], through: &[Message], captures: bool) -> Vec<String> {
    let mut found = Vec::new();
    let ([direct], [through]) = (direct, through) else {
        return vec![format!("sent {} times direct, {} times on", direct.len(), through.len())];
    };
    let line = |message: &Message| message.first.rsplit_once(' ').map(|(rest, _)| rest.to_owned());
    note(&mut found, "request line", &line(direct), &line(through));
    let mut fields = end_to_end(&through.fields);
    if captures {
        fields.remove("x-hone-generation");
    }
    note(&mut found, "request headers", &end_to_end(&direct.fields), &fields);
    note(&mut found, "whether the request is whole", &direct.whole, &through.whole);
    body(&mut found, "request body", &direct.body, &through.body);
    found
}

fn note<T: PartialEq + std::fmt::Debug>(found: &mut Vec<String>, what: &str, a: &T, b: &T) {
    if a != b {
        found.push(format!("{what}: direct {a:?}, through the proxy {b:?}"));
    }
}

fn body(found: &mut Vec<String>, what: &str, a: &[u8], b: &[u8]) {
    if a != b {
        let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        let (len_a, len_b) = (a.len(), b.len());
        found.push(format!("{what}: {len_a} bytes direct, {len_b} through; differ at byte {at}"));
    }
}
