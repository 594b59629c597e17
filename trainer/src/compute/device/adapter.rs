//! An adapter on a device, and where its gradient gathers.
//!
//! Invariant: both are f32, and in the order of [`Proj::ALL`].

use candle_core::Tensor;
use hone_model::frozen::Frozen;
use hone_model::lora::{Lora, Pair, Proj};
use hone_model::ops;

use crate::compute::{ComputeError, check};

/// `(rank, in)` and `(out, rank)` per layer and projection.
pub(super) struct Adapter {
    scale: f64,
    layers: Vec<Vec<(Tensor, Tensor)>>,
}

impl Adapter {
    pub(super) fn new(lora: &Lora, model: &Frozen) -> Result<Self, ComputeError> {
        check::adapter(&model.config, lora)?;
        let pair = |(proj, pair): (Proj, &Pair)| -> Result<(Tensor, Tensor), ComputeError> {
            let (out, width) = model.config.proj_shape(proj);
            let a = Tensor::from_slice(&pair.a, (lora.rank, width), &model.device)?;
            Ok((a, Tensor::from_slice(&pair.b, (out, lora.rank), &model.device)?))
        };
        let layer = |layer: &[Pair; 7]| Proj::ALL.into_iter().zip(layer).map(pair).collect();
        let layers = lora.layers.iter().map(layer).collect::<Result<_, _>>()?;
        Ok(Self { scale: lora.alpha / lora.rank as f64, layers })
    }

    /// `scale · (x Aᵀ) Bᵀ`.
    pub(super) fn delta(
        &self,
        layer: usize,
        proj: Proj,
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (a, b) = &self.layers[layer][proj.index()];
        ops::delta(x, a, b, self.scale)
    }

    /// dL / dx of [`Adapter::delta`]; adds dL by A and B to the collector.
    pub(super) fn back(
        &self,
        layer: usize,
        proj: Proj,
        (x, dy): (&Tensor, &Tensor),
        into: &mut Collector,
    ) -> candle_core::Result<Tensor> {
        let (a, b) = &self.layers[layer][proj.index()];
        let inner = x.matmul(&a.t()?)?;
        let dinner = (dy.matmul(b)? * self.scale)?;
        let da = dinner.t()?.contiguous()?.matmul(x)?;
        let db = (dy.t()?.contiguous()?.matmul(&inner)? * self.scale)?;
        into.add(layer, proj, da, db)?;
        dinner.matmul(a)
    }
}

/// Gradients of A and B, summed on the device over all sequences.
pub(super) struct Collector {
    rank: usize,
    alpha: f64,
    /// Lengths of A and B, for what no sequence reached.
    lengths: Vec<[(usize, usize); 7]>,
    sums: Vec<[Option<(Tensor, Tensor)>; 7]>,
}

impl Collector {
    pub(super) fn new(lora: &Lora) -> Self {
        let lengths = |layer: &[Pair; 7]| layer.each_ref().map(|pair| (pair.a.len(), pair.b.len()));
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            lengths: lora.layers.iter().map(lengths).collect(),
            sums: lora.layers.iter().map(|_| [const { None }; 7]).collect(),
        }
    }

    fn add(&mut self, layer: usize, proj: Proj, a: Tensor, b: Tensor) -> candle_core::Result<()> {
        let place = &mut self.sums[layer][proj.index()];
        *place = Some(match place.take() {
            Some((sum_a, sum_b)) => ((sum_a + a)?, (sum_b + b)?),
            None => (a, b),
        });
        Ok(())
    }

    /// The sums, on the host.
    pub(super) fn finish(self) -> Result<Lora, ComputeError> {
        let values = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let mut layers = Vec::with_capacity(self.sums.len());
        for (sums, lengths) in self.sums.into_iter().zip(self.lengths) {
            let mut pairs = Vec::with_capacity(7);
            for (sum, (a, b)) in sums.into_iter().zip(lengths) {
                pairs.push(match sum {
                    Some((a, b)) => Pair { a: values(a)?, b: values(b)? },
                    None => Pair { a: vec![0.0; a], b: vec![0.0; b] },
                });
            }
            layers.push(pairs.try_into().map_err(|_| ComputeError::AdapterShape)?);
        }
        Ok(Lora { rank: self.rank, alpha: self.alpha, layers })
    }
}
