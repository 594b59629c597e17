//! One resident generation: an engine that never changes, and the leases of the requests on it.
//!
//! Invariant: the engine ends when the last `Arc<Resident>` goes, never while a [`Lease`] is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use hone_shared::clock::now_ms;
use hone_shared::turn::Generation;
use mistralrs::core::llguidance::toktrie::TokEnv;
use mistralrs::core::{MistralRs, Request};
use tokio::sync::{Semaphore, mpsc};

/// How many sequences may be inside one engine on the CPU: one.
///
/// In mistralrs-core 0.8.1 the CPU attention of a decode step keeps its partial sums per tile and
/// head, not per sequence (`attention/backends/cpu.rs`, `flash_attn_cpu_single_q`): in a batch
/// every sequence gets the attention of the last one, so one client's reply is built from another's
/// prompt. Batched prompts are right, batched decoding is not, and the scheduler batches whatever
/// has the same length. Until the crate is fixed, a turn is one sequence, first come first served.
pub const SEQUENCES_IN_CPU_ENGINE: usize = 1;

/// Turns text into token ids as the engine does.
pub type Encode = Box<dyn Fn(&str) -> Result<Vec<u32>, String> + Send + Sync>;

/// What of the model's tokenizer is needed outside the engine.
pub struct Vocabulary {
    /// The bytes of every token.
    pub trie: TokEnv,
    /// The tokenizer.
    pub encode: Encode,
    /// Tokens that end a reply.
    pub ends: Vec<u32>,
    /// Tokens of prompt and reply together that the model can hold.
    pub context: usize,
}

/// The engine thread takes no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine thread takes no requests")]
pub struct Unreachable;

/// A loaded pipeline with its adapter, and the engine thread that runs it.
pub struct Resident {
    /// Which generation this is.
    pub generation: Generation,
    /// Rank of the adapter; 0 for the base.
    pub rank: usize,
    /// Size of the adapter's files, in bytes.
    pub adapter_bytes: u64,
    /// When it became resident, milliseconds since 1970.
    pub loaded_ms: i64,
    /// Tokenizer facts.
    pub vocabulary: Vocabulary,
    /// Sequences that may be inside the engine at once; see [`SEQUENCES_IN_CPU_ENGINE`].
    pub turns: Arc<Semaphore>,
    sender: mpsc::Sender<Request>,
    leases: AtomicUsize,
    used_ms: AtomicI64,
    // Dropping it tells the engine thread to end, so it must live as long as any lease.
    _engine: Arc<MistralRs>,
}

impl Resident {
    /// A resident around a running engine.
    pub fn new(
        generation: Generation,
        rank: usize,
        adapter_bytes: u64,
        engine: Arc<MistralRs>,
        sender: mpsc::Sender<Request>,
        vocabulary: Vocabulary,
    ) -> Self {
        let now = now_ms();
        Self {
            generation,
            rank,
            adapter_bytes,
            loaded_ms: now,
            vocabulary,
            turns: Arc::new(Semaphore::new(SEQUENCES_IN_CPU_ENGINE)),
            sender,
            leases: AtomicUsize::new(0),
            used_ms: AtomicI64::new(now),
            _engine: engine,
        }
    }

    /// Whether the engine thread has ended, by a panic for instance. It does not come back.
    pub fn is_dead(&self) -> bool {
        self.sender.is_closed()
    }

    /// Requests that are using it now.
    pub fn active_leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    /// When it was last leased or given back, if nobody uses it now; milliseconds since 1970.
    pub fn idle_since(&self) -> Option<i64> {
        (self.active_leases() == 0).then(|| self.used_ms.load(Ordering::Relaxed))
    }

    /// Hands a request to the engine thread.
    ///
    /// # Errors
    /// The engine is dead, or its inbox is full.
    pub fn send(&self, request: Request) -> Result<(), Unreachable> {
        self.sender.try_send(request).map_err(|_| Unreachable)
    }
}

/// The right to use a resident: while it lives, so does the engine.
pub struct Lease(Arc<Resident>);

impl Lease {
    /// Takes a lease.
    pub fn new(resident: &Arc<Resident>) -> Self {
        resident.leases.fetch_add(1, Ordering::AcqRel);
        resident.used_ms.store(now_ms(), Ordering::Relaxed);
        Self(Arc::clone(resident))
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl std::ops::Deref for Lease {
    type Target = Resident;

    fn deref(&self) -> &Resident {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.used_ms.store(now_ms(), Ordering::Relaxed);
        self.0.leases.fetch_sub(1, Ordering::AcqRel);
    }
}
