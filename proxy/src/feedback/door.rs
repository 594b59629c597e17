//! One request of feedback on the data listener: read within its bounds, answered, counted.
//!
//! Invariant: the body is read to its end before a 202, and never beyond the limits of size, of time
//! and of what all uploads hold together; no header but the credential is looked at, and that is
//! hashed at once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hone_shared::feedback::Shape;
use hone_shared::secret::Names;
use http::{HeaderMap, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::Session;

use super::{Desk, Fate, LIMITED_AS, wrong_body};
use crate::admit::reply::Fault;
use crate::admit::{Admission, headers};

/// Answers a request. Returns the fault that it was answered with, if it was not taken. Errors: the
/// client could not be read from or written to.
pub(crate) async fn answer(
    desk: &Desk,
    names: &Names,
    session: &mut Session,
    shape: Option<Shape>,
    admission: Admission,
) -> Result<Option<Fault>> {
    let (tenant, anonymous) = sender(names, &session.req_header().headers, shape);
    if let Err(refusal) = desk.limiter.admit(LIMITED_AS, &tenant, &desk.traffic) {
        desk.counts.add(shape, None, Fate::Limited);
        return refuse(session, Fault::for_refusal(refusal)).await;
    }
    let Some(_room) = desk.room(admission.content_length) else {
        desk.counts.add(shape, None, Fate::Unavailable);
        return refuse(session, Fault::FEEDBACK_UNAVAILABLE).await;
    };
    let reading = read(session, admission.content_length, desk.body_bytes_max);
    let Ok(read) = tokio::time::timeout(desk.upload, reading).await else {
        return refuse(session, Fault::CLIENT_TIMEOUT).await;
    };
    let Some(body) = read? else {
        desk.counts.add(shape, None, Fate::TooLarge);
        return refuse(session, Fault::FEEDBACK_TOO_LARGE).await;
    };
    let given = match desk.check(shape, &body) {
        Ok(given) => given,
        Err(error) => {
            let fault = Fault::FEEDBACK_INVALID;
            let body = Bytes::from(wrong_body(&error).to_string());
            fault.send_with(session, body).await?;
            return Ok(Some(fault));
        }
    };
    let weight = if anonymous { desk.config.anonymous_weight } else { 1.0 };
    match desk.take(given, &tenant, weight) {
        Some(taken) => accepted(session, taken.body().to_string()).await.map(|()| None),
        None => refuse(session, Fault::FEEDBACK_UNAVAILABLE).await,
    }
}

/// The tenant of a request, and whether it gave no credential. A Langfuse client sends a pair of
/// keys as a basic credential: its secret key is the API key that chat requests bear.
fn sender(names: &Names, headers: &HeaderMap, shape: Option<Shape>) -> (String, bool) {
    let credential = headers::credential(headers).map(str::trim).filter(|c| !c.is_empty());
    let bearer = match (shape, credential) {
        (Some(Shape::Langfuse), Some(given)) => secret_key(given),
        _ => None,
    };
    (names.tenant(bearer.as_deref().or(credential)), credential.is_none())
}

fn secret_key(credential: &str) -> Option<String> {
    let (scheme, pair) = credential.split_once(' ')?;
    let pair =
        STANDARD.decode(pair.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (_, secret) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    (!secret.is_empty()).then(|| format!("Bearer {secret}"))
}

/// The whole body; `None` when it is longer than `bytes_max`.
async fn read(
    session: &mut Session,
    length: Option<u64>,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>> {
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Ok(None);
    }
    let downstream = session.as_downstream_mut();
    if downstream.get_header(header::EXPECT).is_some() {
        // Or pingora takes this for an answer before the end of the body, and closes.
        downstream.set_close_on_response_before_downstream_finish(false);
        downstream.write_continue_response().await?;
        downstream.set_close_on_response_before_downstream_finish(true);
    }
    let mut body = Vec::new();
    while let Some(chunk) = downstream.read_request_body().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

async fn refuse(session: &mut Session, fault: Fault) -> Result<Option<Fault>> {
    fault.send(session).await?;
    Ok(Some(fault))
}

async fn accepted(session: &mut Session, body: String) -> Result<()> {
    let mut head = ResponseHeader::build(StatusCode::ACCEPTED, Some(2))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_langfuse_clients_secret_key_names_the_tenant_of_the_chat_requests_that_bear_it() {
        let names = Names::new(&[1; 32]);
        let of = |value: &str, shape| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            sender(&names, &headers, shape)
        };
        let pair = format!("Basic {}", STANDARD.encode("pk-lf-1:sk-1"));
        let bearer = of("Bearer sk-1", None);
        assert_eq!(of(&pair, Some(Shape::Langfuse)), bearer);
        assert_ne!(of(&pair, None), bearer, "elsewhere the credential is what it is");
        for odd in ["Basic %%%", "Basic cGs6", "Bearer cGs6c2s="] {
            assert_eq!(of(odd, Some(Shape::Langfuse)), (names.tenant(Some(odd)), false), "{odd}");
        }
        assert_eq!(sender(&names, &HeaderMap::new(), None), ("anonymous".to_owned(), true));
        for empty in [" ", "Basic", "Bearer "] {
            assert!(of(empty, None).1, "an empty credential is none");
        }
    }
}
