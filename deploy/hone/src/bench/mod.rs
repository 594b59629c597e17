//! `hone bench`: figures as ratios within one run, because absolute ones depend on the machine and
//! its neighbours.

pub mod judging;
pub mod learning;
mod load;
mod memory;
mod origin;
pub mod plain;
mod proc_stat;
pub mod proxy;
pub mod serving;
mod target;
pub mod trainer;

/// The median; NaN for nothing.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
