//! Attention with its layers.

use super::{AsLinear, AsNorm};
use crate::ops::{
    self, Added, AttentionParts, Behind, InputParts, KvCache, Tables, self_attention,
};
use candle_core::{Result, Tensor};

/// Attention of sequences to themselves, with the layers of queries, keys and values and the layer
/// behind. On request a norm comes before them, queries and keys have norms of their own and turn by
/// position, a factor for each channel follows, and a shortcut leads around everything:
/// `shortcut + gamma·output(attention(q(norm(x)), k(norm(x)), v(norm(x))))`.
///
/// The block runs as one node in f32 or f64 on the CPU, if everything but the layers' adapters is
/// frozen and a layer has at most one adapter; dropout included. Anything else, attention with a
/// cache and that of the first tokens alone runs layer by layer with the same result.
///
/// The node keeps its input, and for the backward pass queries, keys and values. It keeps what the last
/// layer sees only where that layer has an adapter or a sequence more than 256 tokens.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use lora::blocks::Attention;
///
/// let layer = || Tensor::ones((4, 4), DType::F32, &Device::Cpu).map(|ones| Linear::new(ones, None));
/// let (query, key, value, output) = (layer()?, layer()?, layer()?, layer()?);
///
/// let x = Tensor::ones((2, 3, 4), DType::F32, &Device::Cpu)?;   // (batch, time, width)
/// let y = Attention::new(&query, &key, &value, &output, 2).shortcut(&x).forward(&x)?;
/// // Values of 4 that all tokens share: 1 + 4·4.
/// assert_eq!(y.to_vec3::<f32>()?[1][2], [17., 17., 17., 17.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Attention<'a> {
    norm: Option<&'a dyn AsNorm>,
    inputs: Inputs<'a>,
    head_norms: [Option<&'a dyn AsNorm>; 2],
    rope: Option<Tables>,
    cached_rope: Option<Tables>,
    core: Option<ops::Attention>,
    output: &'a dyn AsLinear,
    heads: usize,
    first: Option<usize>,
    behind: Behind,
    recompute: bool,
}

/// What makes queries, keys and values.
#[derive(Clone, Copy, Debug)]
enum Inputs<'a> {
    Apart([&'a dyn AsLinear; 3]),
    Joined(&'a dyn AsLinear),
}

impl<'a> Attention<'a> {
    /// Attention of so many heads. Where key and value have fewer outputs than query, several heads
    /// share their keys and values.
    pub fn new(
        query: &'a impl AsLinear,
        key: &'a impl AsLinear,
        value: &'a impl AsLinear,
        output: &'a impl AsLinear,
        heads: usize,
    ) -> Self {
        Self::of(Inputs::Apart([query, key, value]), output, heads)
    }

    /// As [`new`](Self::new), with queries, keys and values in one layer, in this order.
    pub fn joined(qkv: &'a impl AsLinear, output: &'a impl AsLinear, heads: usize) -> Self {
        Self::of(Inputs::Joined(qkv), output, heads)
    }

    fn of(inputs: Inputs<'a>, output: &'a dyn AsLinear, heads: usize) -> Self {
        Self {
            norm: None,
            inputs,
            head_norms: [None, None],
            rope: None,
            cached_rope: None,
            core: None,
            output,
            heads,
            first: None,
            behind: Behind::default(),
            recompute: false,
        }
    }

    /// Which tokens a token sees, with which scale, dropout and soft cap. The default sees all, with a
    /// scale of 1 / √dim.
    pub fn core(mut self, attention: ops::Attention) -> Self {
        self.core = Some(attention);
        self
    }

    /// Puts a norm in front of the layers.
    pub fn norm(mut self, norm: &'a impl AsNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Puts norms behind the layers of queries and keys: over as many numbers as a norm has weights, which
    /// is each head or all heads together.
    pub fn head_norms(
        mut self,
        queries: Option<&'a impl AsNorm>,
        keys: Option<&'a impl AsNorm>,
    ) -> Self {
        fn dynamic(norm: &impl AsNorm) -> &dyn AsNorm {
            norm
        }
        self.head_norms = [queries.map(dynamic), keys.map(dynamic)];
        self
    }

    /// Turns queries and keys by their positions, as [`ops::rope`] does: `cos` and `sin` are (time, n) or
    /// (batch, time, n), and the first 2·n numbers of each head turn.
    pub fn rope(mut self, cos: &Tensor, sin: &Tensor) -> Self {
        let (cos, sin) = (cos.clone(), sin.clone());
        self.rope = Some(Tables { cos, sin });
        self
    }

    /// Turns the keys of all positions by these tables instead, where the angles of earlier positions
    /// depend on how many follow. A cache then holds keys as they are before they turn.
    pub fn rope_of_all_keys(mut self, cos: &Tensor, sin: &Tensor) -> Self {
        let (cos, sin) = (cos.clone(), sin.clone());
        self.cached_rope = Some(Tables { cos, sin });
        self
    }

    /// Computes the results of so many first tokens alone, which see all tokens: for the last layer of a
    /// model whose head reads no others. A shortcut is still that of all tokens. The attention must not
    /// depend on a token's place: no causal mask, window or sequences.
    pub fn first(mut self, tokens: Option<usize>) -> Self {
        self.first = tokens;
        self
    }

    /// Drops results with this probability, before the factors and the shortcut, and divides the others
    /// by the probability to be kept: for training. The draw is
    /// [`seed_dropout`](crate::ops::seed_dropout)'s. The dropout of attention's weights is that of
    /// [`core`](Self::core).
    pub fn dropout(mut self, probability: f64) -> Self {
        self.behind.dropout = probability;
        self
    }

    /// Multiplies the result by a factor for each channel, (out), before the shortcut is added.
    pub fn gamma(mut self, gamma: Option<&Tensor>) -> Self {
        self.behind.gamma = gamma.cloned();
        self
    }

    /// Adds a tensor of the result's shape.
    pub fn shortcut(mut self, shortcut: &Tensor) -> Self {
        self.behind.shortcut = Added::Tensor(shortcut.clone());
        self
    }

    /// Adds the norm's result, as [`Mlp::shortcut_of_norm`](super::Mlp::shortcut_of_norm).
    pub fn shortcut_of_norm(mut self) -> Self {
        self.behind.shortcut = Added::Normed;
        self
    }

    /// Computes queries, keys and values anew in the backward pass instead of keeping them. That saves
    /// memory for the time of three more products.
    pub fn recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    /// The result for an input (batch, time, in): (batch, time, out), or as many tokens as
    /// [`first`](Self::first) asks for.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit, or a dropout's probability is outside of `0.0..1.0`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_cached(xs, None)
    }

    /// As [`forward`](Self::forward), behind the tokens whose keys and values the cache holds. The cache
    /// gets those of these tokens too.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if the cache is of other sequences.
    pub fn forward_cached(&self, xs: &Tensor, cache: Option<&mut KvCache>) -> Result<Tensor> {
        self.behind.check()?;
        let norm = |norm: Option<&dyn AsNorm>| norm.map(AsNorm::as_norm).transpose();
        let [q_norm, k_norm] = self.head_norms;
        let inputs = match self.inputs {
            Inputs::Apart([q, k, v]) => {
                InputParts::Apart(Box::new([q.as_linear()?, k.as_linear()?, v.as_linear()?]))
            }
            Inputs::Joined(qkv) => InputParts::Joined(qkv.as_linear()?),
        };
        let parts = AttentionParts {
            norm: norm(self.norm)?,
            inputs,
            head_norms: [norm(q_norm)?, norm(k_norm)?],
            rope: self.rope.clone(),
            cached_rope: self.cached_rope.clone(),
            core: self.core.clone(),
            output: self.output.as_linear()?,
            heads: self.heads,
            first: self.first,
            behind: self.behind.clone(),
            recompute: self.recompute,
        };
        self_attention(xs, &parts, cache)
    }
}
