//! The rules of the framing gate for requests that came by HTTP/2, where there is no gate.
//!
//! The h2 crate has decoded the frames, refused fields of a connection and compared lengths; what is
//! left is everything that would be ambiguous once the request is written as HTTP/1.
//!
//! Invariant: a request that may pass here could have come by HTTP/1 and passed the gate.

use http::{HeaderValue, Version, header};
use pingora::http::RequestHeader;

use crate::listen::gate::Refusal;
use crate::listen::gate::fields::Fields;
use crate::listen::gate::target;

/// Checks a request of HTTP/2; others have passed the gate. Makes one field of cookies that came in
/// crumbs (RFC 9113 §8.2.3).
pub fn check(request: &mut RequestHeader, fields_max: usize) -> Result<(), Refusal> {
    if request.version != Version::HTTP_2 {
        return Ok(());
    }
    let method = request.method.as_str().as_bytes();
    if !method.iter().all(|b| b.is_ascii_uppercase() || *b == b'-') {
        return Err(Refusal::RequestLine);
    }
    if matches!(method, b"CONNECT" | b"TRACE" | b"TRACK") {
        return Err(Refusal::Method);
    }
    if target::check(request.raw_path())?.is_some() {
        return Err(Refusal::Target);
    }
    let mut fields = Fields::default();
    for (name, value) in &request.headers {
        fields.take(name.as_str().as_bytes(), value.as_bytes(), fields_max)?;
    }
    fields.done(method, false)?;
    let authority = request.uri.authority().map(|a| a.as_str().as_bytes());
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    match (authority, host) {
        (None, None) => return Err(Refusal::Host),
        (Some(authority), _) if !target::is_host(authority) => return Err(Refusal::Host),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Refusal::Host);
        }
        _ => {}
    }
    join_cookies(request);
    Ok(())
}

fn join_cookies(request: &mut RequestHeader) {
    let crumbs: Vec<&[u8]> =
        request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    // Values that were valid one by one are valid together.
    let Ok(mut whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) else { return };
    whole.set_sensitive(true);
    let _ = request.insert_header(header::COOKIE, whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut builder = http::Request::builder().version(Version::HTTP_2).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0.into()
    }

    #[test]
    fn an_h2_request_is_held_to_the_rules_of_the_gate() {
        for (uri, fields, refusal) in [
            ("http://a/x", &[("content-length", "1, 1")][..], Refusal::Length),
            ("http://a/x", &[("host", "b")], Refusal::Host),
            ("http://a/x", &[("authorization", "a"), ("authorization", "b")], Refusal::Repeated),
            ("/x", &[], Refusal::Host),
            ("*", &[("host", "a")], Refusal::Target),
        ] {
            assert_eq!(check(&mut request(uri, fields), 100), Err(refusal), "{uri} {fields:?}");
        }
        assert_eq!(check(&mut request("http://a/x", &[("a", "1"), ("b", "2")]), 1), {
            Err(Refusal::FieldsMany)
        });
        assert_eq!(check(&mut request("http://a:80/x?y", &[("host", "A:80")]), 100), Ok(()));
        assert_eq!(check(&mut request("/x", &[("host", "a")]), 100), Ok(()));
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut crumbs = request("http://a/", &[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d")]);
        check(&mut crumbs, 100).unwrap();
        let cookies: Vec<_> = crumbs.headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=b; c=d"]);
    }
}
