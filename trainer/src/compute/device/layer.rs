//! One decoder layer forward and backward, with candle's graph cut at every frozen matrix.
//!
//! candle differentiates a product by both of its sides, so a frozen weight would cost the gradient of a
//! matrix that nobody wants, as much work as the forward pass. Here every frozen product and its
//! adapter are differentiated by hand ([`Ground::project_back`]), and candle's autograd does only what
//! is between them:
//!
//! ```text
//! x ─norm─► │ q k v │ ─attention─► │ o │ ─+ x─► middle ─norm─► │ gate up │ ─silu·─► │ down │ ─+─► out
//! ```
//! Invariant: a variable begins each piece and a detached tensor leaves it, so no piece's graph holds
//! another's.

use candle_core::{Tensor, Var};
use hone_model::frozen::Frozen;
use hone_model::lora::Proj;
use hone_model::ops::{self, rms_norm};

use super::adapter::{Adapter, Collector};
use crate::compute::ComputeError;

/// What all layers of a sequence stand on.
pub(super) struct Ground<'a> {
    model: &'a Frozen,
    adapter: Option<&'a Adapter>,
    /// Cosines and sines, `(T, head_dim / 2)`.
    rotation: (Tensor, Tensor),
    /// Causal, `(T, T)`.
    mask: Tensor,
}

/// Attention over the queries, keys and values of a layer, each `(T, heads · head_dim)`.
pub(super) type Attend<'a> = dyn FnMut([&Tensor; 3]) -> candle_core::Result<Tensor> + 'a;

impl<'a> Ground<'a> {
    /// For sequences of `length` tokens.
    pub(super) fn of(
        model: &'a Frozen,
        adapter: Option<&'a Adapter>,
        length: usize,
    ) -> Result<Self, ComputeError> {
        let rotation = ops::rotation(&model.frequencies, 0, length, &model.device)?;
        Ok(Self { model, adapter, rotation, mask: ops::causal_mask(length, &model.device)? })
    }

    /// `W x + bias + scale · B A x`.
    pub(super) fn project(
        &self,
        layer: usize,
        proj: Proj,
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let y = self.model.layers[layer].project(proj, x)?;
        match self.adapter {
            Some(adapter) => y + adapter.delta(layer, proj, x)?,
            None => Ok(y),
        }
    }

    /// dL / dx of [`Ground::project`]; the adapter's part goes to the collector.
    fn project_back(
        &self,
        layer: usize,
        proj: Proj,
        (x, dy): (&Tensor, &Tensor),
        into: &mut Collector,
    ) -> candle_core::Result<Tensor> {
        let dx = self.model.layers[layer].project_back(proj, dy)?;
        match self.adapter {
            Some(adapter) => dx + adapter.back(layer, proj, (x, dy), into)?,
            None => Ok(dx),
        }
    }

    /// Queries, keys and values of a layer by head, see [`Frozen::heads`].
    pub(super) fn heads(
        &self,
        layer: usize,
        qkv: [&Tensor; 3],
    ) -> candle_core::Result<[Tensor; 3]> {
        self.model.heads(layer, qkv, &self.rotation.0, &self.rotation.1)
    }

    /// Causal attention of one sequence over such heads.
    pub(super) fn attend(&self, heads: &[Tensor; 3]) -> candle_core::Result<Tensor> {
        self.model.attention(heads, &self.mask)
    }
}

/// A layer's tensors in the order in which they arise.
pub(super) struct Walk {
    x: Var,
    normed: Tensor,
    qkv: [Var; 3],
    mixed: Tensor,
    middle: Var,
    normed_middle: Tensor,
    gate_up: [Var; 2],
    gated: Tensor,
    /// The layer's result, no part of any graph.
    pub(super) out: Tensor,
}

impl Walk {
    /// Computes layer `index` of input `x` for one whole sequence.
    pub(super) fn causal(
        ground: &Ground<'_>,
        index: usize,
        x: &Tensor,
    ) -> candle_core::Result<Self> {
        Self::of(ground, index, x, &mut |qkv| ground.attend(&ground.heads(index, qkv)?))
    }

    /// Computes layer `index` of input `x`.
    pub(super) fn of(
        ground: &Ground<'_>,
        index: usize,
        x: &Tensor,
        attend: &mut Attend<'_>,
    ) -> candle_core::Result<Self> {
        let (layer, eps) = (&ground.model.layers[index], ground.model.config.rms_eps);
        let x = Var::from_tensor(x)?;
        let normed = rms_norm(&x, &layer.norms[0], eps)?;
        let flat = normed.detach();
        let begin = |proj, x: &Tensor| Var::from_tensor(&ground.project(index, proj, x)?);
        let qkv = [begin(Proj::Q, &flat)?, begin(Proj::K, &flat)?, begin(Proj::V, &flat)?];
        let mixed = attend(qkv.each_ref().map(Var::as_tensor))?;
        let attended = ground.project(index, Proj::O, &mixed.detach())?;
        let middle = Var::from_tensor(&(x.as_detached_tensor() + attended)?)?;
        let normed_middle = rms_norm(&middle, &layer.norms[1], eps)?;
        let flat = normed_middle.detach();
        let gate_up = [begin(Proj::Gate, &flat)?, begin(Proj::Up, &flat)?];
        let gated = (gate_up[0].silu()? * gate_up[1].as_tensor())?;
        let down = ground.project(index, Proj::Down, &gated.detach())?;
        let out = (middle.as_detached_tensor() + down)?;
        Ok(Self { x, normed, qkv, mixed, middle, normed_middle, gate_up, gated, out })
    }

    /// dL / dx from dL / d out; the adapter's part goes to the collector.
    pub(super) fn back(
        &self,
        ground: &Ground<'_>,
        index: usize,
        dout: &Tensor,
        into: &mut Collector,
    ) -> candle_core::Result<Tensor> {
        let mut back = |proj, x: &Tensor, dy: &Tensor| {
            ground.project_back(index, proj, (&x.detach(), dy), into)
        };
        let dgated = back(Proj::Down, &self.gated, dout)?;
        let [dgate, dup] = piece(&self.gated, &dgated, self.gate_up.each_ref())?;
        let dnormed = (back(Proj::Gate, &self.normed_middle, &dgate)?
            + back(Proj::Up, &self.normed_middle, &dup)?)?;
        let [dmiddle] = piece(&self.normed_middle, &dnormed, [&self.middle])?;
        let dmiddle = (dmiddle + dout)?;
        let dmixed = back(Proj::O, &self.mixed, &dmiddle)?;
        let [dq, dk, dv] = piece(&self.mixed, &dmixed, self.qkv.each_ref())?;
        let dnormed = ((back(Proj::Q, &self.normed, &dq)? + back(Proj::K, &self.normed, &dk)?)?
            + back(Proj::V, &self.normed, &dv)?)?;
        let [dx] = piece(&self.normed, &dnormed, [&self.x])?;
        dx + dmiddle
    }
}

/// dL by the variables that a piece `y` of the graph begins with, from dL / dy.
pub(super) fn piece<const N: usize>(
    y: &Tensor,
    dy: &Tensor,
    of: [&Var; N],
) -> candle_core::Result<[Tensor; N]> {
    let found = (y * dy)?.sum_all()?.backward()?;
    let none = || candle_core::Error::Msg("no gradient reached a variable".to_owned());
    let all = of.map(|var| found.get(var.as_tensor()).cloned().ok_or_else(none));
    let all = all.into_iter().collect::<candle_core::Result<Vec<_>>>()?;
    all.try_into().map_err(|_| none())
}
