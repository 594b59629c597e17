//! The parts of a Llama-family layer in candle's plain operations, on any device.
//!
//! Only operations whose gradient candle knows: its fused `rms_norm`, `rope` and `softmax_last_dim` cut
//! the gradient without an error. Invariant: no operation here changes an element type.

use candle_core::{D, DType, Device, Result, Tensor};

/// `x / √(mean(x²) + eps) · weight` over the last dimension (Zhang & Sennrich 2019).
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Rotary embedding of `(heads, T, head_dim)`, halves rotated against each other (Su et al. 2021, in
/// Hugging Face's layout), by cosines and sines that broadcast to `(heads, T, head_dim / 2)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let second = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

/// Cosines and sines `(length, frequencies)` of the positions from `first` on.
///
/// # Errors
/// The device.
pub fn rotation(
    frequencies: &[f32],
    first: usize,
    length: usize,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let frequencies = Tensor::new(frequencies, device)?;
    let positions = Tensor::arange(first as u32, (first + length) as u32, device)?;
    let positions = positions.to_dtype(DType::F32)?;
    let angles = positions.unsqueeze(1)?.matmul(&frequencies.unsqueeze(0)?)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// `(T, T)`: 0 where a position may look, minus infinity where it may not.
///
/// # Errors
/// The device.
pub fn causal_mask(length: usize, device: &Device) -> Result<Tensor> {
    let value = |at: usize| if at % length > at / length { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..length * length).map(value).collect();
    Tensor::from_vec(values, (length, length), device)
}

/// Each of the `heads` of `(heads, T, width)` stands for `times` neighbouring query heads.
///
/// # Errors
/// Shapes that do not fit.
pub fn repeat(x: &Tensor, times: usize) -> Result<Tensor> {
    let (heads, length, width) = x.dims3()?;
    x.unsqueeze(1)?.expand((heads, times, length, width))?.contiguous()?.reshape((
        heads * times,
        length,
        width,
    ))
}

/// ln of the softmax over the last dimension.
///
/// # Errors
/// The device.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&sum)
}

/// The softmax over the last dimension.
///
/// # Errors
/// The device.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    log_softmax(x)?.exp()
}

/// What an adapter adds: `scale · (x Aᵀ) Bᵀ`, with A `(rank, in)` and B `(out, rank)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn delta(x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    x.matmul(&a.t()?)?.matmul(&b.t()?)? * scale
}
