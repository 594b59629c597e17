//! The matrix kernels, and the only place of the trainer with `unsafe` code.
//!
//! Two safe doors: [`linear`] multiplies activations with packed weights, both ways, on all
//! threads; [`view`] multiplies small strided matrices on the calling thread. Both check every
//! length before a pointer is made.
//!
//! Invariant: a result depends on the shapes and values of its own row only, never on the number
//! of threads, on scheduling, or on the other rows of the batch.
#![allow(unsafe_code)]

pub(super) mod linear;
mod micro;
pub(super) mod view;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;
mod words;

pub(super) use linear::{Job, Linear, Term, project, project_back};
pub(super) use view::{View, ViewMut, gemm};
pub use words::Precision;
