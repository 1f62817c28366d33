//! A model with each kind of field, for the snapshot of its expansion.
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, Module};
use lora::LoraModel;
/// A multi-layer perceptron.
pub struct Mlp {
    /// Widens.
    #[lora(rank)]
    pub fc1: Linear,
    #[lora(rank = 16, alpha = 32.0)]
    fc2: Linear,
    act: Activation,
}
/// The LoRA counterpart of [`Mlp`].
pub struct LoraMlp {
    /// Widens.
    pub fc1: ::lora::Lora<Linear>,
    fc2: ::lora::Lora<Linear>,
    act: ::lora::Lora<Activation>,
}
#[doc(hidden)]
#[allow(unused_imports)]
pub use LoraMlp as __lora_of_Mlp;
const _: () = {
    use ::lora::__private as _lora;
    #[automatically_derived]
    impl _lora::LoraModel for Mlp {
        type Lora = LoraMlp;
        fn adapt(&self, cx: &mut _lora::Builder<'_>) -> _lora::Result<LoraMlp> {
            _lora::Ok(LoraMlp {
                fc1: cx.marked("fc1", _lora::Mark::rank(), _lora::layer(&self.fc1))?,
                fc2: cx
                    .marked(
                        "fc2",
                        _lora::Mark::rank_of(16, _lora::Some(32.0), _lora::None),
                        _lora::layer(&self.fc2),
                    )?,
                act: cx.field("act", &self.act)?,
            })
        }
    }
    impl _lora::LoraLayer for Mlp {}
    #[automatically_derived]
    impl _lora::LoraModule for LoraMlp {
        type Base = Mlp;
        fn to_base(&self) -> _lora::Result<Mlp> {
            _lora::Ok(Mlp {
                fc1: _lora::LoraModule::to_base(&self.fc1)?,
                fc2: _lora::LoraModule::to_base(&self.fc2)?,
                act: _lora::LoraModule::to_base(&self.act)?,
            })
        }
        fn visit(&self, cursor: &mut _lora::Cursor<'_>) {
            cursor.field("fc1", &self.fc1);
            cursor.field("fc2", &self.fc2);
            cursor.field("act", &self.act);
        }
        fn visit_mut(&mut self, cursor: &mut _lora::CursorMut<'_>) {
            cursor.field("fc1", &mut self.fc1);
            cursor.field("fc2", &mut self.fc2);
            cursor.field("act", &mut self.act);
        }
    }
    #[automatically_derived]
    impl _lora::Clone for LoraMlp {
        /// Shares the variables: the clone changes as training goes on. `deep_clone` gives a snapshot.
        fn clone(&self) -> Self {
            Self {
                fc1: _lora::Clone::clone(&self.fc1),
                fc2: _lora::Clone::clone(&self.fc2),
                act: _lora::Clone::clone(&self.act),
            }
        }
    }
    #[automatically_derived]
    impl _lora::Debug for LoraMlp {
        fn fmt(&self, f: &mut _lora::Formatter<'_>) -> _lora::FmtResult {
            _lora::debug_struct(
                f,
                "LoraMlp",
                &[("fc1", &self.fc1), ("fc2", &self.fc2), ("act", &self.act)],
                true,
            )
        }
    }
};
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}
#[automatically_derived]
#[allow(warnings, clippy::all)]
impl Module for LoraMlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}
/// The part of a block after attention.
enum FeedForward<N> {
    Dense(Mlp),
    Experts { #[lora(trainable)] gate: Linear, experts: Vec<Mlp>, norm: N },
    Identity,
}
/// The LoRA counterpart of [`FeedForward`].
enum LoraFeedForward<N>
where
    N: ::lora::LoraModel,
{
    Dense(::lora::Lora<Mlp>),
    Experts {
        gate: ::lora::Lora<Linear>,
        experts: ::lora::Lora<Vec<Mlp>>,
        norm: ::lora::Lora<N>,
    },
    Identity,
}
#[doc(hidden)]
#[allow(unused_imports)]
use LoraFeedForward as __lora_of_FeedForward;
const _: () = {
    use ::lora::__private as _lora;
    #[automatically_derived]
    impl<N> _lora::LoraModel for FeedForward<N>
    where
        N: ::lora::LoraModel,
    {
        type Lora = LoraFeedForward<N>;
        fn adapt(
            &self,
            cx: &mut _lora::Builder<'_>,
        ) -> _lora::Result<LoraFeedForward<N>> {
            match self {
                Self::Dense(f0) => {
                    _lora::Ok(LoraFeedForward::Dense(_lora::LoraModel::adapt(f0, cx)?))
                }
                Self::Experts { gate, experts, norm } => {
                    _lora::Ok(LoraFeedForward::Experts {
                        gate: cx.marked("gate", _lora::Mark::trainable(), gate)?,
                        experts: _lora::Builder::field(cx, "experts", experts)?,
                        norm: _lora::Builder::field(cx, "norm", norm)?,
                    })
                }
                Self::Identity => _lora::Ok(LoraFeedForward::Identity),
            }
        }
    }
    impl<N> _lora::LoraLayer for FeedForward<N>
    where
        N: ::lora::LoraModel,
    {}
    #[automatically_derived]
    impl<N> _lora::LoraModule for LoraFeedForward<N>
    where
        N: ::lora::LoraModel,
    {
        type Base = FeedForward<N>;
        fn to_base(&self) -> _lora::Result<FeedForward<N>> {
            match self {
                Self::Dense(f0) => {
                    _lora::Ok(FeedForward::Dense(_lora::LoraModule::to_base(f0)?))
                }
                Self::Experts { gate, experts, norm } => {
                    _lora::Ok(FeedForward::Experts {
                        gate: _lora::LoraModule::to_base(gate)?,
                        experts: _lora::LoraModule::to_base(experts)?,
                        norm: _lora::LoraModule::to_base(norm)?,
                    })
                }
                Self::Identity => _lora::Ok(FeedForward::Identity),
            }
        }
        fn visit(&self, cursor: &mut _lora::Cursor<'_>) {
            match self {
                Self::Dense(f0) => {
                    _lora::LoraModule::visit(f0, cursor);
                }
                Self::Experts { gate, experts, norm } => {
                    cursor.field("gate", gate);
                    cursor.field("experts", experts);
                    cursor.field("norm", norm);
                }
                Self::Identity => {}
            }
        }
        fn visit_mut(&mut self, cursor: &mut _lora::CursorMut<'_>) {
            match self {
                Self::Dense(f0) => {
                    _lora::LoraModule::visit_mut(f0, cursor);
                }
                Self::Experts { gate, experts, norm } => {
                    cursor.field("gate", gate);
                    cursor.field("experts", experts);
                    cursor.field("norm", norm);
                }
                Self::Identity => {}
            }
        }
    }
    #[automatically_derived]
    impl<N> _lora::Clone for LoraFeedForward<N>
    where
        N: ::lora::LoraModel,
    {
        /// Shares the variables: the clone changes as training goes on. `deep_clone` gives a snapshot.
        fn clone(&self) -> Self {
            match self {
                Self::Dense(f0) => Self::Dense(_lora::Clone::clone(f0)),
                Self::Experts { gate, experts, norm } => {
                    Self::Experts {
                        gate: _lora::Clone::clone(gate),
                        experts: _lora::Clone::clone(experts),
                        norm: _lora::Clone::clone(norm),
                    }
                }
                Self::Identity => Self::Identity,
            }
        }
    }
    #[automatically_derived]
    impl<N> _lora::Debug for LoraFeedForward<N>
    where
        N: ::lora::LoraModel,
    {
        fn fmt(&self, f: &mut _lora::Formatter<'_>) -> _lora::FmtResult {
            match self {
                Self::Dense(f0) => _lora::debug_tuple(f, "Dense", &[f0], true),
                Self::Experts { gate, experts, norm } => {
                    _lora::debug_struct(
                        f,
                        "Experts",
                        &[("gate", gate), ("experts", experts), ("norm", norm)],
                        true,
                    )
                }
                Self::Identity => f.write_str("Identity"),
            }
        }
    }
};
impl<N: Module> FeedForward<N> {
    #[allow(dead_code)]
    fn experts(&self) -> usize {
        match self {
            FeedForward::Experts { experts, .. } => experts.len(),
            _ => 0,
        }
    }
}
#[allow(warnings, clippy::all)]
impl<N: Module> LoraFeedForward<N>
where
    N: ::lora::LoraModel,
    ::lora::Lora<N>: Module,
{
    fn experts(&self) -> usize {
        match self {
            LoraFeedForward::Experts { experts, .. } => experts.len(),
            _ => 0,
        }
    }
}
pub struct Net {
    #[lora(config = LoraNetConfig)]
    config: NetConfig,
    #[lora(name = "embed_tokens")]
    embed: Embedding,
    layers: Vec<FeedForward<LayerNorm>>,
    #[lora(flatten)]
    last: Mlp,
    #[lora(0(rank, name = "proj"), 1(skip))]
    heads: Vec<(Linear, Option<f64>)>,
    #[lora(skip)]
    positions: Vec<u32>,
}
/// The LoRA counterpart of [`Net`].
pub struct LoraNet {
    config: ::lora::WithLora<NetConfig>,
    embed: ::lora::Lora<Embedding>,
    layers: ::lora::Lora<Vec<FeedForward<LayerNorm>>>,
    last: ::lora::Lora<Mlp>,
    heads: Vec<(::lora::Lora<Linear>, Option<f64>)>,
    positions: Vec<u32>,
}
#[doc(hidden)]
#[allow(unused_imports)]
pub use LoraNet as __lora_of_Net;
/// The configuration of [`LoraNet`] and that of its conversion.
pub type LoraNetConfig = ::lora::WithLora<NetConfig>;
const _: () = {
    use ::lora::__private as _lora;
    #[automatically_derived]
    impl _lora::LoraModel for Net {
        type Lora = LoraNet;
        fn adapt(&self, cx: &mut _lora::Builder<'_>) -> _lora::Result<LoraNet> {
            _lora::Ok(LoraNet {
                config: cx.config(&self.config),
                embed: cx.named().field("embed_tokens", &self.embed)?,
                layers: _lora::Builder::field(cx, "layers", &self.layers)?,
                last: _lora::LoraModel::adapt(&self.last, cx)?,
                heads: cx
                    .parts(
                        "heads",
                        &self.heads,
                        |cx, (f0, f1)| _lora::Ok((
                            cx
                                .named()
                                .marked("proj", _lora::Mark::rank(), _lora::layer(f0))?,
                            _lora::skipped(f1),
                        )),
                    )?,
                positions: _lora::skipped(&self.positions),
            })
        }
    }
    impl _lora::LoraLayer for Net {}
    #[automatically_derived]
    impl _lora::LoraModule for LoraNet {
        type Base = Net;
        fn to_base(&self) -> _lora::Result<Net> {
            _lora::Ok(Net {
                config: _lora::Clone::clone(_lora::WithLora::base(&self.config)),
                embed: _lora::LoraModule::to_base(&self.embed)?,
                layers: _lora::LoraModule::to_base(&self.layers)?,
                last: _lora::LoraModule::to_base(&self.last)?,
                heads: _lora::Tuples::map(
                    &self.heads,
                    "",
                    &mut |_, (f0, f1)| _lora::Ok((
                        _lora::LoraModule::to_base(f0)?,
                        _lora::skipped(f1),
                    )),
                )?,
                positions: _lora::skipped(&self.positions),
            })
        }
        fn visit(&self, cursor: &mut _lora::Cursor<'_>) {
            cursor.field("embed_tokens", &self.embed);
            cursor.field("layers", &self.layers);
            _lora::LoraModule::visit(&self.last, cursor);
            cursor
                .parts(
                    "heads",
                    &self.heads,
                    |cursor, (f0, _)| {
                        cursor.field("proj", f0);
                    },
                );
        }
        fn visit_mut(&mut self, cursor: &mut _lora::CursorMut<'_>) {
            cursor.field("embed_tokens", &mut self.embed);
            cursor.field("layers", &mut self.layers);
            _lora::LoraModule::visit_mut(&mut self.last, cursor);
            cursor
                .parts(
                    "heads",
                    &mut self.heads,
                    |cursor, (f0, _)| {
                        cursor.field("proj", f0);
                    },
                );
        }
    }
    #[automatically_derived]
    impl _lora::Clone for LoraNet {
        /// Shares the variables: the clone changes as training goes on. `deep_clone` gives a snapshot.
        fn clone(&self) -> Self {
            Self {
                config: _lora::Clone::clone(&self.config),
                embed: _lora::Clone::clone(&self.embed),
                layers: _lora::Clone::clone(&self.layers),
                last: _lora::Clone::clone(&self.last),
                heads: _lora::cloned_parts(
                    &self.heads,
                    |(f0, f1)| (_lora::Clone::clone(f0), _lora::skipped(f1)),
                ),
                positions: _lora::skipped(&self.positions),
            }
        }
    }
    #[automatically_derived]
    impl _lora::Debug for LoraNet {
        fn fmt(&self, f: &mut _lora::Formatter<'_>) -> _lora::FmtResult {
            _lora::debug_struct(
                f,
                "LoraNet",
                &[
                    ("config", &self.config),
                    ("embed", &self.embed),
                    ("layers", &self.layers),
                    ("last", &self.last),
                ],
                false,
            )
        }
    }
    use _lora::NotAModel as _;
    const _: () = assert!(
        ! _lora::Skipped:: < Option < f64 > > ::IS_LAYER,
        "a layer under `skip` keeps candle's forward pass, which may cut the gradient: drop the `skip`, the layer stays frozen all the same"
    );
    const _: () = assert!(
        ! _lora::Skipped:: < Vec < u32 > > ::IS_LAYER,
        "a layer under `skip` keeps candle's forward pass, which may cut the gradient: drop the `skip`, the layer stays frozen all the same"
    );
};
/// A linear layer of its own.
#[derive(Clone)]
#[lora(linear)]
pub struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    name: String,
}
#[doc(hidden)]
#[allow(dead_code, non_camel_case_types)]
pub type __lora_of_Projection = ::lora::layers::LoraOwnLinear<Projection>;
const _: () = {
    use ::lora::__private as _lora;
    #[automatically_derived]
    impl _lora::LoraModel for Projection
    where
        Self: _lora::Clone,
    {
        type Lora = _lora::LoraOwnLinear<Self>;
        fn adapt(&self, cx: &mut _lora::Builder<'_>) -> _lora::Result<Self::Lora> {
            _lora::own_linear(self, cx)
        }
    }
    impl _lora::LoraLayer for Projection
    where
        Self: _lora::Clone,
    {}
    #[automatically_derived]
    impl _lora::OwnLinear for Projection
    where
        Self: _lora::Clone,
    {
        fn tensors(&self) -> (&_lora::Tensor, _lora::Option<&_lora::Tensor>) {
            (
                _lora::WeightField::weight(&self.weight),
                _lora::BiasField::bias(&self.bias),
            )
        }
        fn tensors_mut(
            &mut self,
        ) -> (&mut _lora::Tensor, _lora::Option<&mut _lora::Tensor>) {
            (
                _lora::WeightField::weight_mut(&mut self.weight),
                _lora::BiasField::bias_mut(&mut self.bias),
            )
        }
    }
};
/// How many means to take.
#[derive(Clone, Debug)]
pub enum Pooling {
    Mean,
    Last,
}
const _: () = {
    use ::lora::__private as _lora;
    #[automatically_derived]
    impl _lora::LoraModel for Pooling
    where
        Self: _lora::Clone + _lora::Debug,
    {
        type Lora = Self;
        fn adapt(&self, _: &mut _lora::Builder<'_>) -> _lora::Result<Self> {
            _lora::Ok(_lora::Clone::clone(self))
        }
    }
    #[automatically_derived]
    impl _lora::LoraModule for Pooling
    where
        Self: _lora::Clone + _lora::Debug,
    {
        type Base = Self;
        fn to_base(&self) -> _lora::Result<Self> {
            _lora::Ok(_lora::Clone::clone(self))
        }
        fn visit(&self, _: &mut _lora::Cursor<'_>) {}
        fn visit_mut(&mut self, _: &mut _lora::CursorMut<'_>) {}
    }
};
