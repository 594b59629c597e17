//! The matrix kernels, and the only place of the trainer with `unsafe` code.
//!
//! Everything is made of one step, [`accumulate`]: a strip of up to twelve rows times a panel of
//! 32 columns, added to a tile. [`Rows`] turns activations into strips, [`Linear`] holds weights as
//! panels, [`multiply`] and [`project`] walk over both, [`collect`] makes outer products for
//! gradients. Every length is checked before a pointer is made.
//!
//! Invariant: a result depends on the shapes and values of its own row only, never on the number
//! of threads, on scheduling, or on the other rows of the batch.
#![allow(unsafe_code)]

mod collect;
pub(super) mod linear;
mod micro;
mod product;
mod rows;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;
mod words;

pub(super) use collect::{Outer, collect};
pub(super) use linear::{Linear, Turned};
pub(super) use micro::{
    Left, NR, Product, ROWS_MAX, Tile, accumulate, f32_words, kernel_name, turn_square,
};
pub(super) use product::{Job, Out, Part, Term, block_rows, multiply, project, project_back};
pub(super) use rows::{Rows, panel, strips};
pub use words::Precision;
pub(super) use words::fold;
