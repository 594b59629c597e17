//! The thread that waits for fdatasync, so that the one that writes does not.
//!
//! Why: a record is safe from the death of the process once it is written. While the writing thread
//! waited for the disk, up to a hundred milliseconds on a busy one, answered turns stood in memory
//! only (found by killing: 12 of 547).
//!
//! Invariant: at most one sync is under way.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use super::handle::{Shared, lock};
use crate::data_dir::sync_parent;

/// What is to be made durable.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) file: File,
    /// The file's path, where its name is not durable yet.
    pub(super) name: Option<PathBuf>,
    /// The segment, and how much of it is durable afterwards.
    pub(super) segment: u32,
    pub(super) upto: u64,
    /// How much of what the writer keeps that is.
    pub(super) bytes: usize,
    /// How many `Begin` frames are in it.
    pub(super) begins: u64,
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Syncer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<(Job, io::Result<()>)>,
    pub(super) busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Errors: the thread cannot be started.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (jobs, to_do) = sync_channel::<Job>(1);
        let (tell, done) = sync_channel(1);
        let run = move || {
            for job in to_do {
                let name = || job.name.as_ref().map_or(Ok(()), |path| sync_parent(path));
                let result = job.file.sync_data().and_then(|()| name());
                if tell.send((job, result)).is_err() {
                    return;
                }
                lock(&shared.queue).synced = true;
                shared.filled.notify_one();
            }
        };
        let thread = std::thread::Builder::new().name("spool-sync".to_owned()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), done, busy: false, thread: Some(thread) })
    }

    /// Begins a sync. Call only while none is under way. `false`: the thread is gone.
    pub(super) fn begin(&mut self, job: Job) -> bool {
        self.busy = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.busy
    }

    /// The sync that was under way, if it has ended; waits for that if `wait`.
    pub(super) fn ended(&mut self, wait: bool) -> Option<(Job, io::Result<()>)> {
        if !self.busy {
            return None;
        }
        let ended = match wait {
            true => self.done.recv().map_err(|RecvError| TryRecvError::Disconnected),
            false => self.done.try_recv(),
        };
        self.busy = matches!(ended, Err(TryRecvError::Empty));
        ended.ok()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        // A result that nobody took must not keep the thread from ending.
        while self.done.recv().is_ok() {}
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the spool panicked");
        }
    }
}
