//! Feedback on the data listener: `POST /v1/feedback` and the paths of other products, answered
//! here and never passed on.
//!
//! ```text
//! door (read, bounded) ─► Desk::check ─► Desk::take ─► spool ─► ingest ─► store
//!                           4xx            202, or 503 where it cannot be recorded
//! ```
//! It is recorded as a turn is: by the spool, without waiting for disk. Whether what it names exists
//! is found out later; the answer does not tell, so nobody can probe for another's turns.
//!
//! Invariant: what was answered with 202 is stored, or counted as dropped with a reason; what was
//! not, left nothing behind.

mod counts;
mod door;

use std::sync::Arc;
use std::time::Duration;

use hone_shared::clock::now_ms;
use hone_shared::feedback::{self, FeedbackError, FeedbackId, FeedbackKind, Given, Part, Shape};
use hone_shared::policy::TrafficPolicy;
use http::Method;
use pingora::http::RequestHeader;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use counts::{Counts, Fate};
pub(crate) use door::answer;

use crate::config::{Answer, FeedbackConfig, Limits};
use crate::limit::Limiter;
use crate::swap::Watches;
use crate::tap::Recorder;

/// The name of the limit, beside those of routes: no route can have it.
const LIMITED_AS: &str = "/feedback";

/// Where feedback is taken.
pub struct Desk {
    config: FeedbackConfig,
    traffic: TrafficPolicy,
    body_bytes_max: usize,
    upload: Duration,
    /// A permit per byte that an upload may hold.
    room: Semaphore,
    recorder: Arc<Recorder>,
    limiter: Arc<Limiter>,
    /// What was taken and what was not.
    pub counts: Counts,
}

/// Feedback that is on its way into the store.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its identity.
    pub id: FeedbackId,
    /// The shape in which it came.
    pub shape: Shape,
    /// What it says.
    pub kinds: Vec<FeedbackKind>,
}

impl Taken {
    /// The answer, with what clients of each product look for.
    pub fn body(&self) -> Value {
        let mut body = json!({ "feedback_id": self.id });
        match self.shape {
            Shape::Native | Shape::Tensorzero => {}
            Shape::Langfuse => body["id"] = json!(self.id),
            Shape::Portkey => {
                body["status"] = json!("success");
                body["message"] = json!("Feedback accepted");
                body["feedback_ids"] = json!([self.id]);
            }
        }
        body
    }
}

/// The body of an answer to feedback that is wrong.
pub fn wrong_body(error: &FeedbackError) -> Value {
    json!({ "error": {
        "message": error.message, "type": "invalid_request_error", "param": error.param,
        "code": "invalid_feedback",
    }})
}

impl Desk {
    /// A desk in front of `recorder`.
    pub fn new(
        config: FeedbackConfig,
        limits: &Limits,
        recorder: Arc<Recorder>,
        limiter: Arc<Limiter>,
    ) -> Arc<Self> {
        let traffic = TrafficPolicy {
            requests_per_minute_max: limits.feedback_per_minute_max,
            ..TrafficPolicy::default()
        };
        let bytes_max = limits.feedback_upload_bytes_max;
        Arc::new(Self {
            config,
            traffic,
            body_bytes_max: limits.feedback_body_bytes_max.min(bytes_max),
            upload: Duration::from_millis(limits.feedback_upload_ms),
            room: Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS)),
            recorder,
            limiter,
            counts: Counts::default(),
        })
    }

    /// Room for an upload, by what its head says of its length, until it is dropped. `None`: there
    /// is none now.
    fn room(&self, length: Option<u64>) -> Option<SemaphorePermit<'_>> {
        let most = self.body_bytes_max;
        let bytes = length.map_or(most, |length| usize::try_from(length).unwrap_or(most).min(most));
        self.room.try_acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX)).ok()
    }

    /// Whether a request is feedback that hone answers. `Some`: with the shape that its path names.
    pub fn takes(&self, request: &RequestHeader, watches: &Watches) -> Option<Option<Shape>> {
        let path = request.uri.path();
        if request.method != Method::POST || !self.config.paths.iter().any(|own| own == path) {
            return None;
        }
        let learns = || watches.snapshot().policies.routes.iter().any(|route| route.mode.trains());
        let answers = match self.config.answer {
            Answer::Never => false,
            Answer::Always => true,
            Answer::Learning => learns(),
        };
        answers.then(|| path.ends_with("/scores").then_some(Shape::Langfuse))
    }

    /// Reads a body. Errors: what is wrong with it, for its sender.
    pub fn check(&self, shape: Option<Shape>, body: &[u8]) -> Result<Given, FeedbackError> {
        feedback::parse(shape, body, &self.config.scales)
            .inspect_err(|_| self.counts.add(shape, None, Fate::Invalid))
    }

    /// Hands what a tenant said to the spool. `None`: it cannot be recorded now.
    pub fn take(&self, given: Given, tenant: &str, weight: f64) -> Option<Taken> {
        let dry_run = given.dry_run;
        let feedback = given.by(tenant, weight, now_ms());
        let kinds = feedback.parts.iter().map(Part::kind).collect();
        let taken = Taken { id: feedback.id, shape: feedback.shape, kinds };
        let fate = match dry_run {
            true => Fate::DryRun,
            false if self.recorder.feedback(feedback) => Fate::Accepted,
            false => Fate::Unavailable,
        };
        taken.kinds.iter().for_each(|kind| self.counts.add(Some(taken.shape), Some(*kind), fate));
        self.counts.piece(fate);
        (fate != Fate::Unavailable).then_some(taken)
    }
}
