//! The door of the admin listener: which name it was called by, and who calls.
//!
//! Invariant: whatever the method, path and spelling, a request without a token reaches nothing but
//! the open endpoints; the decision is made before any routing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{ENDPOINTS, Operator, refuse};
use crate::config::ProxyConfig;
use crate::error::ProxyError;

/// The name of the token that a request came with.
#[derive(Debug, Clone)]
pub struct Who(pub String);

/// Checks that operators can be told apart wherever the listener is reachable from. Error: it is
/// reachable from elsewhere and no token file was given on purpose.
pub fn check_bind(cfg: &ProxyConfig) -> Result<(), ProxyError> {
    if cfg.admin.ip().is_loopback() || cfg.admin_token_file.is_some() {
        return Ok(());
    }
    Err(ProxyError::Config(format!(
        "the admin listener may not be on {}: it would be reachable from other machines. Use a \
         loopback address, or say with --admin-token-file which tokens to accept",
        cfg.admin
    )))
}

/// The middleware around everything.
pub async fn guard(
    State(operator): State<Arc<Operator>>,
    mut request: Request,
    next: Next,
) -> Response {
    if !called_rightly(request.uri(), request.headers(), &operator.hosts) {
        let message =
            "Call the admin listener by its address, by localhost or by a configured name.";
        return refuse(StatusCode::MISDIRECTED_REQUEST, "admin_host_unknown", message);
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let who = token.and_then(|token| operator.tokens.who(token)).map(|name| Who(name.to_owned()));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    let open = reads && ENDPOINTS.iter().any(|endpoint| endpoint.open && endpoint.path == path);
    match who {
        Some(who) => {
            request.extensions_mut().insert(who);
        }
        None if open => {}
        None => {
            let message =
                "Send a token, such as that of <data>/admin.token, as `Authorization: Bearer`.";
            return refuse(StatusCode::UNAUTHORIZED, "admin_token_required", message);
        }
    }
    next.run(request).await
}

/// Whether the host that was asked for cannot be a name that somebody else's DNS made point here: a
/// browser that was lured to such a name sends it along.
fn called_rightly(uri: &Uri, headers: &HeaderMap, names: &[String]) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let host = match (uri.authority(), first, second) {
        (Some(authority), None, _) => authority.as_str(),
        (_, Some(host), None) => match host.to_str() {
            Ok(host) => host,
            Err(_) => return false,
        },
        _ => return false,
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_address = host.parse::<SocketAddr>().is_ok()
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_configured_names_are_answered() {
        let ask = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            called_rightly(&Uri::from_static("/metrics"), &headers, &["hone.internal".to_owned()])
        };
        for good in
            ["127.0.0.1:8081", "127.0.0.1", "[::1]:8081", "[::1]", "LocalHost:1", "hone.internal:9"]
        {
            assert!(ask(good), "{good}");
        }
        for bad in
            ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "", ":80"]
        {
            assert!(!ask(bad), "{bad}");
        }
        let mut two = HeaderMap::new();
        two.append(header::HOST, "localhost".parse().unwrap());
        two.append(header::HOST, "evil.example".parse().unwrap());
        assert!(!called_rightly(&Uri::from_static("/"), &two, &[]));
        assert!(!called_rightly(&Uri::from_static("/"), &HeaderMap::new(), &[]));
    }
}
