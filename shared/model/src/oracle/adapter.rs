//! An adapter as candle variables, so that candle's autograd finds its gradient.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use super::OracleError;
use crate::config::ModelConfig;
use crate::lora::{Lora, Pair, Proj};
use crate::ops;

/// The variables of one adapter, by layer and [`Proj::index`].
pub struct LoraVars {
    rank: usize,
    alpha: f64,
    layers: Vec<Vec<(Var, Var)>>,
}

impl LoraVars {
    /// Copies an adapter onto a device.
    ///
    /// # Errors
    /// The adapter does not fit the model.
    pub fn new(
        lora: &Lora,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<LoraVars, OracleError> {
        if !lora.fits(config) {
            return Err(OracleError::Input("the adapter does not fit this model".to_owned()));
        }
        let mut layers = Vec::with_capacity(lora.layers.len());
        for layer in &lora.layers {
            let mut pairs = Vec::with_capacity(7);
            for (proj, pair) in Proj::ALL.into_iter().zip(layer) {
                let (out, width) = config.proj_shape(proj);
                let a = Var::from_slice(&pair.a, (lora.rank, width), device)?;
                let b = Var::from_slice(&pair.b, (out, lora.rank), device)?;
                pairs.push((a, b));
            }
            layers.push(pairs);
        }
        Ok(LoraVars { rank: lora.rank, alpha: lora.alpha, layers })
    }

    /// `scale · (x Aᵀ) Bᵀ` of one projection.
    pub(super) fn delta(
        &self,
        layer: usize,
        proj: Proj,
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (a, b) = &self.layers[layer][proj.index()];
        ops::delta(x, a, b, self.alpha / self.rank as f64)
    }

    /// The adapter's part of a gradient. A tensor that autograd did not reach is an error: it
    /// would mean that some operation cut the graph.
    ///
    /// # Errors
    /// [`OracleError::Input`] naming the tensor.
    pub fn gradient(&self, gradients: &GradStore) -> Result<Lora, OracleError> {
        let values = |var: &Var, place: &str| -> Result<Vec<f32>, OracleError> {
            let found = gradients
                .get(var.as_tensor())
                .ok_or_else(|| OracleError::Input(format!("no gradient reached {place}")))?;
            Ok(found.flatten_all()?.to_vec1::<f32>()?)
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, pairs) in self.layers.iter().enumerate() {
            let mut done = Vec::with_capacity(7);
            for (proj, (a, b)) in Proj::ALL.into_iter().zip(pairs) {
                let place = format!("layer {index} {}", proj.name());
                done.push(Pair { a: values(a, &place)?, b: values(b, &place)? });
            }
            let done: [Pair; 7] =
                done.try_into().map_err(|_| OracleError::Input("seven pairs".to_owned()))?;
            layers.push(done);
        }
        Ok(Lora { rank: self.rank, alpha: self.alpha, layers })
    }
}
