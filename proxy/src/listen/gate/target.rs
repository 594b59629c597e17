//! Request targets and hosts: which spellings every server reads alike.
//!
//! Invariant: what passes here is printable ASCII, has one authority at most, and cannot be split
//! into something else by a server that is more lenient.

use super::refusal::Refusal;

/// Checks a request target in origin or absolute form. Returns the authority of an absolute form.
pub fn check(target: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    if !target.iter().all(|b| is_target_byte(*b)) {
        return Err(Refusal::Target);
    }
    if target.first() == Some(&b'/') {
        return Ok(None);
    }
    // Asterisk and authority forms belong to methods that are not passed on. Schemes in capitals are
    // valid, and no client writes them; pingora would answer them with a 400 of its own.
    let http = target.strip_prefix(b"http://");
    let rest = http.or_else(|| target.strip_prefix(b"https://")).ok_or(Refusal::Target)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let authority = &rest[..end];
    if is_host(authority) { Ok(Some(authority)) } else { Err(Refusal::Host) }
}

/// Printable ASCII without what URLs have to encode and servers disagree about.
const fn is_target_byte(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\')
}

/// `name`, `name:port`, `1.2.3.4:port` or `[v6]:port`. Names may hold underscores, as those of
/// containers do.
pub fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let text = std::str::from_utf8(&rest[..end]).unwrap_or_default();
            if text.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (&b"v6"[..], &rest[end + 1..])
        }
        None => {
            let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
            host.split_at(end)
        }
    };
    let named = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => is_port(digits),
        _ => false,
    };
    !name.is_empty() && name.iter().all(named) && port_ok
}

fn is_port(digits: &[u8]) -> bool {
    let decimal = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    decimal && std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_an_optional_port() {
        for host in ["a", "a.b", "my_engine:8000", "10.0.0.1", "[::1]", "[2001:db8::1]:443"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        let wrong =
            ["", ":80", "a b", "a:", "a:b", "a:99999", "a:+1", "a:1:2", "u@a", "a/b", "a,b"];
        for host in wrong.iter().chain(&["[::1", "[::1]x", "[::z]", "[]", "ä", "a\u{0}", "a;b"]) {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn targets_are_paths_or_urls_of_printable_ascii() {
        assert_eq!(check(b"/v1/x?a={b}|c^%zz"), Ok(None));
        assert_eq!(check(b"http://a:1/x"), Ok(Some(&b"a:1"[..])));
        assert_eq!(check(b"HTTP://a:1/x"), Err(Refusal::Target));
        assert_eq!(check(b"https://a?x"), Ok(Some(&b"a"[..])));
        for target in ["", "*", "a:80", "x", "ftp://a/", "/a b", "/a#b", "/a\\b", "/\u{e9}", "/\""]
        {
            assert_eq!(check(target.as_bytes()), Err(Refusal::Target), "{target}");
        }
        assert_eq!(check(b"http://u@a/"), Err(Refusal::Host));
        assert_eq!(check(b"http:///x"), Err(Refusal::Host));
    }
}
