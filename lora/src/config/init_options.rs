//! Settings of initial values: of EVA, CorDA, LoRA-GA and LoftQ.

use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

/// Settings of [`Init::Eva`](crate::Init::Eva).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct EvaConfig {
    /// A layer gets at most rho · rank; at least 1. With 1 every layer keeps its rank.
    pub rho: f64,
    /// A component counts as found when the last inputs hardly turned it: when the cosine of the
    /// component before and after is at least this. In `0.0..=1.0`.
    pub tau: f64,
    /// Whether to divide each component by the root of its singular value.
    pub whiten: bool,
    /// Whether to change a layer's alpha in proportion to its rank, so that the scaling stays.
    pub adjust_scaling_factors: bool,
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self {
            rho: 2.0,
            tau: 0.99,
            whiten: false,
            adjust_scaling_factors: true,
        }
    }
}

impl EvaConfig {
    /// Sets [`rho`](Self::rho).
    pub fn rho(mut self, rho: f64) -> Self {
        self.rho = rho;
        self
    }

    /// Sets [`tau`](Self::tau).
    pub fn tau(mut self, tau: f64) -> Self {
        self.tau = tau;
        self
    }

    /// Sets [`whiten`](Self::whiten).
    pub fn whiten(mut self, whiten: bool) -> Self {
        self.whiten = whiten;
        self
    }

    /// Sets [`adjust_scaling_factors`](Self::adjust_scaling_factors).
    pub fn adjust_scaling_factors(mut self, adjust: bool) -> Self {
        self.adjust_scaling_factors = adjust;
        self
    }

    pub(crate) fn check(&self, problems: &mut Vec<String>) {
        if !(self.rho.is_finite() && self.rho >= 1.0) {
            problems.push(format!(
                "eva_config: rho is {}: it must be at least 1",
                self.rho
            ));
        }
        if !(0.0..=1.0).contains(&self.tau) {
            problems.push(format!(
                "eva_config: tau is {}: it must be in 0.0..=1.0",
                self.tau
            ));
        }
    }
}

/// Settings of [`Init::Corda`](crate::Init::Corda).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CordaConfig {
    /// Which components the adapter takes.
    #[serde(rename = "corda_method")]
    pub method: CordaMethod,
}

impl CordaConfig {
    /// Sets [`method`](Self::method).
    pub fn method(mut self, method: CordaMethod) -> Self {
        self.method = method;
        self
    }
}

/// Which components of a weight, as its inputs see it, an adapter takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CordaMethod {
    /// The largest: the adapter learns the task that the inputs stand for.
    #[default]
    Ipm,
    /// The smallest: the model keeps what it does with such inputs.
    Kpm,
}

/// Settings of [`Init::LoraGa`](crate::Init::LoraGa).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LoraGaConfig {
    /// Which of the gradient's first 2r singular vectors go to A, and which to B.
    pub direction: LoraGaDirection,
    /// The size of A and B.
    pub scale: LoraGaScale,
    /// Gamma of [`LoraGaScale::Stable`], above 0.
    pub stable_gamma: f64,
}

impl Default for LoraGaConfig {
    fn default() -> Self {
        Self {
            direction: LoraGaDirection::default(),
            scale: LoraGaScale::default(),
            stable_gamma: 16.0,
        }
    }
}

impl LoraGaConfig {
    /// Sets [`direction`](Self::direction).
    pub fn direction(mut self, direction: LoraGaDirection) -> Self {
        self.direction = direction;
        self
    }

    /// Sets [`scale`](Self::scale).
    pub fn scale(mut self, scale: LoraGaScale) -> Self {
        self.scale = scale;
        self
    }

    /// Sets [`stable_gamma`](Self::stable_gamma).
    pub fn stable_gamma(mut self, gamma: f64) -> Self {
        self.stable_gamma = gamma;
        self
    }

    pub(crate) fn check(&self, problems: &mut Vec<String>) {
        if !(self.stable_gamma.is_finite() && self.stable_gamma > 0.0) {
            problems.push(format!(
                "lora_ga_config: stable_gamma is {}: it must be above 0",
                self.stable_gamma
            ));
        }
    }
}

/// Which singular vectors of the gradient go to A and which to B.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoraGaDirection {
    /// In turn: B gets the first, A the second, and so on.
    ArBr,
    /// B gets the first r, A the second r.
    A2rBr,
    /// A gets the first r, B the second r.
    #[default]
    ArB2r,
    /// A and B get the same r of the first 2r, chosen at random.
    #[serde(rename = "random")]
    Random,
}

/// The size of A and B, which is B = U·S and A = Vᵀ before scaling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraGaScale {
    /// B is multiplied by out^¼ / √gamma.
    #[default]
    Stable,
    /// B is multiplied such that its largest singular value is the weight's.
    WeightSvd,
    /// A and B are each multiplied by 1 / s.
    GdScale,
    /// A and B are left as they are.
    Unit,
}

/// A limit, as each iteration costs a decomposition and the number may come from a file.
const MOST_ITERATIONS: usize = 100;

/// Settings of [`Init::Loftq`](crate::Init::Loftq).
///
/// In place of PEFT's `loftq_bits` there is a [`quantiser`](Self::quantiser), one of candle's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LoftqConfig {
    /// How the base weight is quantised. In JSON its name in lower case: `"q4_0"`, `"q4k"`. A layer that
    /// [`LoraConfig::quantize`](crate::LoraConfig::quantize) quantises keeps that type.
    #[serde(with = "quantiser")]
    pub quantiser: GgmlDType,
    /// How often quantisation and decomposition alternate, 1 to 100.
    #[serde(rename = "loftq_iter")]
    pub iterations: usize,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self {
            quantiser: GgmlDType::Q4_0,
            iterations: 1,
        }
    }
}

impl LoftqConfig {
    /// Sets [`quantiser`](Self::quantiser).
    pub fn quantiser(mut self, quantiser: GgmlDType) -> Self {
        self.quantiser = quantiser;
        self
    }

    /// Sets [`iterations`](Self::iterations).
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// Checks the quantiser where the base is quantised to this type.
    pub(crate) fn check_base(&self, base: GgmlDType, problems: &mut Vec<String>) {
        if self.quantiser != base && self.quantiser != Self::default().quantiser {
            problems.push(format!(
                "loftq_config: quantiser is {:?}, but quantize {base:?}: a quantised base has one type",
                self.quantiser
            ));
        }
    }

    pub(crate) fn check(&self, problems: &mut Vec<String>) {
        if !(1..=MOST_ITERATIONS).contains(&self.iterations) {
            problems.push(format!(
                "loftq_config: iterations is {}: it must be 1 to {MOST_ITERATIONS}",
                self.iterations
            ));
        }
        if quantiser::name(self.quantiser).is_none() {
            problems.push(format!(
                "loftq_config: {:?} is not a quantisation: take one of {}",
                self.quantiser,
                quantiser::names()
            ));
        }
    }
}

/// Names of candle's quantisations.
pub(super) mod quantiser {
    use candle_core::quantized::GgmlDType;
    use serde::{Deserialize, Deserializer, Serializer};

    const NAMES: [(&str, GgmlDType); 10] = [
        ("q4_0", GgmlDType::Q4_0),
        ("q4_1", GgmlDType::Q4_1),
        ("q5_0", GgmlDType::Q5_0),
        ("q5_1", GgmlDType::Q5_1),
        ("q8_0", GgmlDType::Q8_0),
        ("q2k", GgmlDType::Q2K),
        ("q3k", GgmlDType::Q3K),
        ("q4k", GgmlDType::Q4K),
        ("q5k", GgmlDType::Q5K),
        ("q6k", GgmlDType::Q6K),
    ];

    pub(in crate::config) fn name(dtype: GgmlDType) -> Option<&'static str> {
        let mut names = NAMES.iter();
        names.find(|(_, d)| *d == dtype).map(|(name, _)| *name)
    }

    pub(in crate::config) fn names() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }

    pub(super) fn serialize<S: Serializer>(dtype: &GgmlDType, to: S) -> Result<S::Ok, S::Error> {
        let unknown = || serde::ser::Error::custom(format!("{dtype:?} is not a quantisation"));
        to.serialize_str(name(*dtype).ok_or_else(unknown)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GgmlDType, D::Error> {
        let name = String::deserialize(from)?;
        let unknown = || {
            let message = format!("`{name}` is not a quantisation: take one of {}", names());
            serde::de::Error::custom(message)
        };
        let mut known = NAMES.iter();
        let found = known.find(|(known, _)| *known == name);
        found.map(|(_, dtype)| *dtype).ok_or_else(unknown)
    }

    /// A quantisation that may be missing.
    pub(in crate::config) mod optional {
        use super::{Deserialize, Deserializer, GgmlDType, Serializer};

        pub(in crate::config) fn serialize<S: Serializer>(
            dtype: &Option<GgmlDType>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match dtype {
                Some(dtype) => super::serialize(dtype, to),
                None => to.serialize_none(),
            }
        }

        pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<GgmlDType>, D::Error> {
            #[derive(Deserialize)]
            struct Named(#[serde(deserialize_with = "super::deserialize")] GgmlDType);

            Ok(Option::<Named>::deserialize(from)?.map(|Named(dtype)| dtype))
        }
    }
}
