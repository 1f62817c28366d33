//! The fixtures that PyTorch made of the ops, `fixtures/ops`, and how to run one.

use crate::{absolute_error, fixed, relative_error, values};
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};
use lora::ops;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The files of `fixtures/ops`.
pub const THEMES: &[&str] = &[
    "activation",
    "attention",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "embedding",
    "group_norm",
    "linear",
    "norm",
    "pool",
    "prelu",
    "residual",
    "rope",
    "scatter",
    "softmax",
    "upsample",
];

/// One op with its arguments and PyTorch's results.
pub struct Case {
    /// The op's name and the case's number.
    pub name: String,
    /// The op and the arguments that are not tensors.
    pub call: Call,
    /// The arguments that are tensors.
    pub inputs: BTreeMap<String, Tensor>,
    /// The result.
    pub output: Tensor,
    /// The gradients of sum(output · fixed(shape, F32, 77)), by the inputs' names.
    pub grads: BTreeMap<String, Tensor>,
}

/// The op of a case and its arguments that are not tensors.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(missing_docs, reason = "named as in PyTorch")]
pub enum Call {
    Linear,
    LoraLinear {
        scale: f64,
    },
    Conv1d(Convolution),
    Conv2d(Convolution),
    ConvTranspose1d(Convolution),
    ConvTranspose2d(Convolution),
    #[serde(rename = "prelu")]
    PReLU,
    Embedding,
    LayerNorm {
        eps: f32,
    },
    RmsNorm {
        eps: f32,
    },
    GeluErf,
    Gelu,
    Silu,
    Relu,
    Softmax {
        dim: usize,
    },
    Rope,
    RopeI,
    RopeThd,
    Attention {
        scale: f32,
        causal: bool,
    },
    GroupNorm {
        groups: usize,
        eps: f64,
    },
    Residual {
        dim: usize,
    },
    AvgPool2d {
        kernel: (usize, usize),
        stride: (usize, usize),
    },
    MaxPool2d {
        kernel: (usize, usize),
        stride: (usize, usize),
    },
    Scatter {
        dim: usize,
    },
    ScatterAdd {
        dim: usize,
    },
    UpsampleBilinear2d {
        size: (usize, usize),
        align_corners: bool,
    },
    UpsampleBilinear2dWithScale {
        scale: (f64, f64),
        align_corners: bool,
    },
    UpsampleNearest1d {
        size: (usize,),
    },
    UpsampleNearest2d {
        size: (usize, usize),
    },
    CrossEntropy(Criterion),
    LinearCrossEntropy(Criterion),
}

/// The settings of a cross-entropy.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named as those of the op")]
pub struct Criterion {
    pub label_smoothing: f64,
    pub soft_cap: Option<f64>,
    pub logit_scale: Option<f64>,
    pub sum: bool,
}

impl Criterion {
    fn of(self, class_weights: Option<&Tensor>) -> ops::CrossEntropy {
        let mut criterion = ops::CrossEntropy::new().label_smoothing(self.label_smoothing);
        if let Some(weights) = class_weights {
            criterion = criterion.class_weights(weights);
        }
        if let Some(cap) = self.soft_cap {
            criterion = criterion.soft_cap(cap);
        }
        if let Some(scale) = self.logit_scale {
            criterion = criterion.logit_scale(scale);
        }
        match self.sum {
            true => criterion.sum(),
            false => criterion,
        }
    }
}

/// The arguments of a convolution.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named as in PyTorch")]
pub struct Convolution {
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
    pub groups: usize,
    /// Of transposed convolutions.
    pub output_padding: usize,
}

impl Default for Convolution {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
            output_padding: 0,
        }
    }
}

/// The cases of one file of `fixtures/ops`.
pub fn cases(theme: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct Spec {
        name: String,
        #[serde(flatten)]
        call: Call,
    }

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ops");
    let path = folder.join(format!("{theme}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let specs = &metadata.metadata().as_ref().unwrap()["cases"];
    let specs: Vec<Spec> = serde_json::from_str(specs).unwrap();
    assert!(!specs.is_empty(), "{theme} has no cases");
    let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let mut read = |Spec { name, call }| {
        let prefix = format!("{name}.");
        let own: Vec<String> = (tensors.keys())
            .filter(|key| key.starts_with(&prefix))
            .cloned()
            .collect();
        let mut inputs = BTreeMap::new();
        let mut grads = BTreeMap::new();
        for key in own {
            let tensor = tensors.remove(&key).unwrap();
            let key = &key[prefix.len()..];
            match key.strip_prefix("grad.") {
                Some(input) => grads.insert(input.into(), tensor),
                None => inputs.insert(key.into(), tensor),
            };
        }
        let output = inputs.remove("output").unwrap();
        assert!(!grads.is_empty(), "{name} has no gradients");
        Case {
            name,
            call,
            inputs,
            output,
            grads,
        }
    };
    specs.into_iter().map(&mut read).collect()
}

impl Call {
    /// The op's result for inputs of these names.
    ///
    /// # Errors
    /// Those of the op.
    pub fn apply(&self, inputs: &BTreeMap<String, Tensor>) -> Result<Tensor> {
        let get = |name: &str| match inputs.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("no input {name}"),
        };
        let bias = inputs.get("bias");
        match *self {
            Self::Linear => ops::linear(get("x")?, get("weight")?, bias),
            Self::LoraLinear { scale } => {
                let x = get("x")?;
                let base = ops::linear(x, get("weight")?, bias)?;
                let update = ops::linear(&ops::linear(x, get("a")?, None)?, get("b")?, None)?;
                base + (update * scale)?
            }
            Self::Conv1d(Convolution {
                stride,
                padding,
                dilation,
                groups,
                ..
            }) => {
                let config = Conv1dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                    cudnn_fwd_algo: None,
                };
                ops::conv1d(get("x")?, get("weight")?, bias, &config)
            }
            Self::Conv2d(Convolution {
                stride,
                padding,
                dilation,
                groups,
                ..
            }) => {
                let config = Conv2dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                    cudnn_fwd_algo: None,
                };
                ops::conv2d(get("x")?, get("weight")?, bias, &config)
            }
            Self::ConvTranspose1d(Convolution {
                stride,
                padding,
                dilation,
                groups,
                output_padding,
            }) => {
                let config = ConvTranspose1dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                    output_padding,
                };
                ops::conv_transpose1d(get("x")?, get("weight")?, bias, &config)
            }
            Self::ConvTranspose2d(Convolution {
                stride,
                padding,
                dilation,
                output_padding,
                ..
            }) => {
                let config = ConvTranspose2dConfig {
                    stride,
                    padding,
                    dilation,
                    output_padding,
                };
                ops::conv_transpose2d(get("x")?, get("weight")?, bias, &config)
            }
            Self::PReLU => {
                let (x, weight) = (get("x")?, get("weight")?);
                let mut shape = vec![1; x.rank()];
                shape[1] = weight.elem_count();
                ops::prelu(x, &weight.reshape(shape)?)
            }
            Self::Embedding => ops::embedding(get("ids")?, get("table")?),
            Self::LayerNorm { eps } => {
                ops::layer_norm(get("x")?, get("weight")?, get("bias")?, eps)
            }
            Self::RmsNorm { eps } => ops::rms_norm(get("x")?, get("weight")?, eps),
            Self::GeluErf => ops::gelu_erf(get("x")?),
            Self::Gelu => ops::gelu(get("x")?),
            Self::Silu => ops::silu(get("x")?),
            Self::Relu => ops::relu(get("x")?),
            Self::Softmax { dim } => ops::softmax(get("x")?, dim),
            Self::Rope => ops::rope(get("x")?, get("cos")?, get("sin")?),
            Self::RopeI => ops::rope_i(get("x")?, get("cos")?, get("sin")?),
            Self::RopeThd => ops::rope_thd(get("x")?, get("cos")?, get("sin")?),
            Self::Attention { scale, causal } => {
                let (q, k, v) = (get("q")?, get("k")?, get("v")?);
                ops::sdpa(q, k, v, inputs.get("mask"), causal, scale, 1.0)
            }
            Self::GroupNorm { groups, eps } => {
                ops::group_norm(get("x")?, get("weight")?, get("bias")?, groups, eps)
            }
            Self::Residual { dim } => {
                ops::residual(get("x")?, get("branch")?, inputs.get("gamma"), dim)
            }
            Self::AvgPool2d { kernel, stride } => ops::avg_pool2d(get("x")?, kernel, stride),
            Self::MaxPool2d { kernel, stride } => ops::max_pool2d(get("x")?, kernel, stride),
            Self::Scatter { dim } => ops::scatter(get("x")?, get("ids")?, get("source")?, dim),
            Self::ScatterAdd { dim } => {
                ops::scatter_add(get("x")?, get("ids")?, get("source")?, dim)
            }
            Self::UpsampleBilinear2d {
                size: (height, width),
                align_corners,
            } => ops::upsample_bilinear2d(get("x")?, height, width, align_corners),
            Self::UpsampleBilinear2dWithScale {
                scale: (height, width),
                align_corners,
            } => ops::upsample_bilinear2d_with_scale(get("x")?, height, width, align_corners),
            Self::UpsampleNearest1d { size: (length,) } => {
                ops::upsample_nearest1d(get("x")?, length)
            }
            Self::UpsampleNearest2d {
                size: (height, width),
            } => ops::upsample_nearest2d(get("x")?, height, width),
            Self::CrossEntropy(criterion) => {
                let criterion = criterion.of(inputs.get("class_weights"));
                criterion.of_logits(get("x")?, get("labels")?)
            }
            Self::LinearCrossEntropy(criterion) => {
                let criterion = criterion.of(inputs.get("class_weights"));
                criterion.of_linear(get("x")?, get("weight")?, bias, get("labels")?)
            }
        }
    }
}

/// The value of an op and the gradients that the backward pass gave.
pub struct Results {
    /// The op's value.
    pub output: Tensor,
    /// By the inputs' names.
    pub grads: BTreeMap<String, Tensor>,
}

impl Case {
    /// Runs both passes, on the inputs as `convert` makes them from the fixture's and as `view`
    /// then shows them to the op: tensors of the same values. Tells whose gradient is missing.
    ///
    /// # Errors
    /// Those of the op.
    pub fn run(
        &self,
        convert: impl Fn(&Tensor) -> Result<Tensor>,
        view: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Results> {
        let mut vars = BTreeMap::new();
        let mut inputs = self.inputs.clone();
        for (name, input) in &mut inputs {
            if !input.dtype().is_float() {
                continue;
            }
            *input = convert(input)?;
            if self.grads.contains_key(name) {
                let var = Var::from_tensor(input)?;
                *input = var.as_tensor().clone();
                vars.insert(name.clone(), var);
            }
            *input = view(input)?;
        }
        let output = self.call.apply(&inputs)?;
        // A loss of half values is f32.
        let upstream = convert(&fixed(output.shape(), DType::F32, 77))?.to_dtype(output.dtype())?;
        let grads = (&output * upstream)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|(name, var)| match grads.get(var) {
            Some(grad) => Ok((name.clone(), grad.clone())),
            None => bail!("no gradient of {name}"),
        });
        Ok(Results {
            grads: grads.collect::<Result<_>>()?,
            output,
        })
    }

    /// Panics unless value and gradients are PyTorch's, computed in this dtype.
    #[track_caller]
    pub fn check(&self, what: &str, dtype: DType, tolerance: f64) {
        self.check_views(what, dtype, tolerance, |input| Ok(input.clone()));
    }

    /// As [`check`](Self::check), the op seeing its inputs as `view` shows them.
    #[track_caller]
    pub fn check_views(
        &self,
        what: &str,
        dtype: DType,
        tolerance: f64,
        view: impl Fn(&Tensor) -> Result<Tensor>,
    ) {
        let what = format!("{} {what}", self.name);
        let results = self.run(|input| input.to_dtype(dtype), view);
        let results = results.unwrap_or_else(|e| panic!("{what}: {e}"));
        if self.output.rank() > 0 {
            assert_eq!(results.output.dtype(), dtype, "{what}");
        }
        let dtypes = results.grads.values().map(Tensor::dtype);
        assert!(
            dtypes.into_iter().all(|of| of == dtype),
            "{what}: gradients"
        );
        results.assert_close(&what, &self.output, &self.grads, tolerance);
    }
}

impl Results {
    /// Panics unless the value and every gradient agree to this relative error.
    #[track_caller]
    pub fn assert_close(
        &self,
        what: &str,
        output: &Tensor,
        grads: &BTreeMap<String, Tensor>,
        tolerance: f64,
    ) {
        let close = |what: &str, actual: &Tensor, expected: &Tensor| {
            // What cancels to nothing is compared with what it came from, numbers of about one.
            let largest = values(expected).unwrap().into_iter();
            let largest = largest.fold(0.0, |largest: f64, value| largest.max(value.abs()));
            let error = match largest {
                0.0..1e-3 => absolute_error(actual, expected).unwrap(),
                _ => relative_error(actual, expected).unwrap(),
            };
            assert!(error <= tolerance, "{what}: error {error:e}");
        };
        close(what, &self.output, output);
        assert!(self.grads.keys().eq(grads.keys()), "{what}");
        for (name, grad) in &self.grads {
            close(&format!("{what}: gradient of {name}"), grad, &grads[name]);
        }
    }
}
