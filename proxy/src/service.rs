//! The flow of a request, as pingora's hooks in the order in which they run: admit → route → tap →
//! upstream.
//!
//! Invariant: bodies are never changed. Filters only look at the chunks that pass, and a hook does
//! nothing that could wait: no disk, no lock, no name resolution.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hone_shared::secret::Names;
use hone_shared::turn::Outcome;
use http::StatusCode;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::{Error, ErrorSource, ErrorType};

use crate::access;
use crate::admin::counters::{Counters, InFlight};
use crate::admit::reply::{self, Fault};
use crate::admit::{self, Admission, headers, path};
use crate::config::Limits;
use crate::feedback::{self, Desk};
use crate::limit::{Limiter, Permit};
use crate::listen::cork;
use crate::route;
use crate::swap::Watches;
use crate::tap::rest::read_rest;
use crate::tap::turn::RequestHead;
use crate::tap::{Recorder, Tap};
use crate::upstream::retry::{self, Attempt};
use crate::upstream::tunnel::{Tunnel, Tunnels};
use crate::upstream::{Choice, Engines, Wants, affinity};

/// Everything that requests share.
pub struct Service {
    /// Bounds on bodies and waits.
    pub limits: Limits,
    /// Policies and aliases, watched.
    pub watches: Arc<Watches>,
    /// Where requests go.
    pub engines: Arc<Engines>,
    /// How many of them may.
    pub limiter: Arc<Limiter>,
    /// Those that stop being HTTP.
    pub tunnels: Arc<Tunnels>,
    /// Where turns go.
    pub recorder: Arc<Recorder>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Where feedback is taken.
    pub feedback: Arc<Desk>,
    /// Prefixes of the paths that pass; empty: all do.
    pub paths_allowed: Vec<String>,
    /// Keys the names of tenants.
    pub names: Names,
}

/// One request.
pub struct Ctx {
    tap: Option<Tap>,
    /// Its place among the requests of its tenant, until it ends.
    _permit: Option<Permit>,
    /// Where it goes.
    destination: Destination,
    /// Set once the connection is no longer HTTP.
    tunnel: Option<Tunnel>,
    /// The proxy's own answer, when it gave one.
    fault: Option<Fault>,
    /// The request may not use a pooled connection, because it could not be replayed.
    fresh: bool,
    /// The final response head has been relayed.
    response_begun: bool,
    /// Body bytes that came past in this attempt.
    request_bytes: u64,
    attempts: u32,
    gauge: InFlight,
}

/// Where one request goes, and what is known from failing to get there.
#[derive(Default)]
struct Destination {
    /// [`affinity::key`] of the request; 0 where there is nothing to choose.
    key: u64,
    /// The present attempt's.
    choice: Option<Choice>,
    /// Addresses that could not be connected to.
    tried: Vec<SocketAddr>,
    /// The connection is to stop being HTTP.
    upgrade: bool,
}

impl Service {
    /// Finds the request's route, counts it against its tenant's limits, and opens the tap if the
    /// route wants the request recorded. Errors: what to answer instead.
    fn enter(
        &self,
        session: &Session,
        admission: Admission,
        ctx: &mut Ctx,
    ) -> std::result::Result<(), Fault> {
        let request = session.req_header();
        if !path::is_allowed(request.raw_path(), &self.paths_allowed) {
            return Err(Fault::PATH_NOT_ALLOWED);
        }
        let credential = headers::credential(&request.headers);
        let address = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        ctx.destination.upgrade = admission.upgrade;
        if !self.engines.lone() {
            ctx.destination.key = affinity::key(&request.headers, credential, address);
        }
        let tenant = self.names.tenant(credential);
        let path = request.uri.path();
        let snapshot = self.watches.snapshot();
        let Some(policy) = route::find(&snapshot, path, &request.headers, &tenant) else {
            return Ok(());
        };
        let admitted = self.limiter.admit(&policy.name, &tenant, &policy.traffic);
        ctx._permit = admitted.map_err(Fault::for_refusal)?;
        if admission.upgrade || admission.opted_out {
            return Ok(());
        }
        let Some(pinned) = route::pin(&snapshot, policy) else { return Ok(()) };
        if self.recorder.sheds(&pinned.policy) {
            return Err(Fault::CAPTURE_FULL);
        }
        let head = RequestHead {
            method: request.method.as_str(),
            path,
            headers: &request.headers,
            tenant,
            client: self.names.client(address, headers::user_agent(&request.headers)),
            content_length: admission.content_length,
        };
        ctx.tap = Some(Tap::open(Arc::clone(&self.recorder), pinned, head));
        Ok(())
    }
}

#[async_trait]
impl ProxyHttp for Service {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx {
            tap: None,
            _permit: None,
            destination: Destination::default(),
            tunnel: None,
            fault: None,
            fresh: false,
            response_begun: false,
            request_bytes: 0,
            attempts: 0,
            gauge: self.counters.request(),
        }
    }

    async fn early_request_filter(&self, session: &mut Session, _ctx: &mut Ctx) -> Result<()> {
        let ms = Duration::from_millis;
        session.set_read_timeout(Some(ms(self.limits.client_read_ms)));
        session.set_write_timeout(Some(ms(self.limits.client_write_ms)));
        session.set_total_drain_timeout(Some(ms(self.limits.client_linger_ms)));
        headers::hide_secrets(session.req_header_mut())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let request = session.req_header_mut();
        let admission = match admit::admit(request, &self.limits, &self.counters) {
            Ok(admission) => admission,
            Err(fault) => {
                ctx.fault = Some(fault);
                fault.send(session).await?;
                return Ok(true);
            }
        };
        if let Some(shape) = self.feedback.takes(session.req_header(), &self.watches) {
            let names = &self.names;
            ctx.fault = feedback::answer(&self.feedback, names, session, shape, admission).await?;
            ctx.gauge.answered(ctx.fault.map_or(StatusCode::ACCEPTED.as_u16(), |f| f.status));
            return Ok(true);
        }
        ctx.fresh = match admission.content_length {
            Some(bytes) => bytes > self.limits.upstream_replay_bytes_max,
            None => !session.is_body_empty(),
        };
        if let Err(fault) = self.enter(session, admission, ctx) {
            ctx.fault = Some(fault);
            fault.send(session).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        ctx.attempts += 1;
        ctx.request_bytes = 0;
        if let Some(tap) = &mut ctx.tap {
            tap.attempt();
        }
        let to = &mut ctx.destination;
        to.choice = self.engines.choose(to.key, &to.tried);
        let Some(choice) = &to.choice else {
            self.engines.nowhere(to.key);
            let error =
                Error::explain(ErrorType::ConnectNoRoute, "the engine's name does not resolve");
            return Err(error.into_up());
        };
        let wants = Wants { fresh: ctx.fresh, upgrade: to.upgrade };
        Ok(Box::new(self.engines.peer(choice, wants)))
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some(choice) = ctx.destination.choice.as_ref().filter(|_| !reused) {
            choice.target.connected();
        }
        if !session.is_body_empty() {
            self.engines.hold(fd);
        }
        Ok(())
    }

    /// Nothing was sent, so the next address may have the request, whatever its method.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let to = &mut ctx.destination;
        if let Some(choice) = to.choice.take() {
            self.engines.failed(&choice, &e);
            to.tried.push(choice.target.address);
        }
        let again = self.engines.has_more(&to.tried);
        if again {
            self.counters.retried();
        }
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let choice = ctx.destination.choice.as_ref();
        if let Some(host) = choice.and_then(|choice| self.engines.host_header(choice)) {
            request.insert_header(http::header::HOST, host)?;
        } else if !request.headers.contains_key(http::header::HOST) {
            // HTTP/1.0 can do without, HTTP/1.1 cannot.
            request.insert_header(http::header::HOST, "localhost")?;
        }
        if let Some(tap) = &ctx.tap {
            request.insert_header(headers::GENERATION, tap.generation().as_str())?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            // pingora #935: an empty last chunk would be written as a second terminator, and poison
            // the connection.
            *body = None;
        }
        if let Some(tunnel) = ctx.tunnel.as_ref().filter(|_| session.was_upgraded()) {
            tunnel.sent(body.as_ref().map_or(0, Bytes::len));
            return Ok(());
        }
        let chunk = body.as_deref().unwrap_or_default();
        ctx.request_bytes += chunk.len() as u64;
        if ctx.request_bytes > self.limits.request_bytes_max {
            let error = Error::explain(ErrorType::HTTPStatus(413), "request body over the limit");
            return Err(error.into_down());
        }
        if let Some(tap) = &mut ctx.tap {
            tap.request_chunk(chunk, end_of_stream);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS && ctx.destination.upgrade {
            ctx.tunnel = Some(self.tunnels.open());
            session.set_read_timeout(Some(Duration::from_millis(self.limits.tunnel_idle_ms)));
        } else if response.status == StatusCode::SWITCHING_PROTOCOLS {
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "a 101 that nobody asked for");
            return Err(error.into_up());
        } else if response.status.is_informational() {
            return Ok(());
        }
        ctx.response_begun = true;
        ctx.gauge.responded(response.status.as_u16());
        if let Some(tap) = &mut ctx.tap {
            tap.response_head(response);
            tap.outlives(Duration::from_millis(self.limits.record_wait_ms_max)).await;
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let chunk = body.as_deref().unwrap_or_default();
        if let Some(tunnel) = &ctx.tunnel {
            tunnel.received(chunk.len());
            return Ok(None);
        }
        let outcome = ctx.outcome(None);
        if let Some(tap) = ctx.tap.as_mut().filter(|_| !session.was_upgraded()) {
            tap.response_chunk(chunk);
            if end_of_stream {
                // Before the client gets its last bytes: whatever happens now, it was answered.
                tap.finish(outcome.unwrap_or(Outcome::Complete), None, ctx.attempts);
            }
        }
        if end_of_stream {
            cork::response_ends();
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        let attempt = Attempt {
            reused,
            response_begun: ctx.response_begun,
            body_lost: session.as_ref().retry_buffer_truncated(),
        };
        let again = retry::may_retry(&e, attempt);
        if again {
            self.counters.retried();
        }
        let mut e = e.more_context(format!("Peer: {peer}"));
        // Always decided here: pingora's own marks retry a POST after HTTP/2 errors (#979) and
        // panic when undecided.
        e.set_retry(again);
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let fault = reply::for_error(e);
        if let Some(fault) = fault
            && !ctx.response_begun
        {
            ctx.fault = Some(fault);
            if let (Some(tap), ErrorSource::Upstream) = (&mut ctx.tap, e.esource()) {
                let within = Duration::from_millis(self.limits.rest_read_ms);
                read_rest(tap, session, self.limits.request_bytes_max, within).await;
            }
            if let Err(error) = fault.send(session).await {
                tracing::debug!(%error, "the client went away before it was answered");
            }
        }
        let error_code = fault.map_or(0, |f| f.status);
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        let outcome = ctx.outcome(e);
        let own_status = (!ctx.response_begun).then(|| ctx.fault.map_or(0, |f| f.status));
        ctx.gauge.ended(outcome, ctx.fault);
        access::log(session, ctx.tap.as_ref(), &ctx.gauge, outcome, ctx.fault);
        if let Some(tap) = &mut ctx.tap {
            tap.finish(outcome.unwrap_or(Outcome::ClientAbort), own_status, ctx.attempts);
        }
    }

    fn request_summary(&self, session: &Session, _ctx: &Ctx) -> String {
        // Without the query: it may hold keys.
        let request = session.req_header();
        format!("{} {}", request.method, request.uri.path())
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, error: &Error) -> bool {
        // A client that goes away is no fault of ours, and is counted.
        error.esource() == &ErrorSource::Downstream
    }
}

impl Ctx {
    /// How the exchange ended, in the words of the store; `None`: it was refused before it began.
    fn outcome(&self, error: Option<&Error>) -> Option<Outcome> {
        Some(match error.map(Error::esource) {
            // Whoever ended a tunnel, that is how tunnels end.
            _ if self.tunnel.is_some() => Outcome::Complete,
            // Also while its body came: too long, or too slow.
            None | Some(ErrorSource::Downstream) if self.fault.is_some() => return None,
            None if self.gauge.failed() => Outcome::UpstreamError,
            None => Outcome::Complete,
            Some(ErrorSource::Downstream) => Outcome::ClientAbort,
            Some(_) => Outcome::UpstreamError,
        })
    }
}
