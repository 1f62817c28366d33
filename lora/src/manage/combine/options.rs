//! How to combine adapters: [`Combination`] and its settings.

/// How several adapters become one: PEFT's `combination_type`.
///
/// `w` is an adapter's weight, `s` its scaling. The combined adapter's scaling is 1.
///
/// Combinations whose name ends in `Svd` work on the whole updates `s·B·A` and take the first
/// singular values of the result. The others work on A and on B separately, with the weight
/// `±√|w·s|`. That is cheap, but gives no sum of the updates. [`Cat`](Self::Cat) is exact, and so
/// is [`Svd`](Self::Svd) if the rank is large enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Combination {
    /// Weighted sums of the As and of the Bs. For adapters of one rank.
    Linear,
    /// The As below each other and the Bs side by side: exactly the sum of the updates. The rank is
    /// the sum of the ranks.
    Cat,
    /// The weighted sum of the updates.
    #[default]
    Svd,
    /// Keeps only the largest values of each adapter. Of these, the mean of the values that have
    /// the majority's sign (<https://arxiv.org/abs/2306.01708>). For adapters of one rank.
    Ties,
    /// [`Ties`](Self::Ties) on the updates.
    TiesSvd,
    /// Keeps random values of each adapter, made larger to make up for the values left out
    /// (<https://arxiv.org/abs/2311.03099>). For adapters of one rank.
    DareLinear,
    /// Keeps values as [`DareLinear`](Self::DareLinear) does and combines them by the sign rule of
    /// [`Ties`](Self::Ties). For adapters of one rank.
    DareTies,
    /// [`DareLinear`](Self::DareLinear) on the updates.
    DareLinearSvd,
    /// [`DareTies`](Self::DareTies) on the updates.
    DareTiesSvd,
    /// Weighted sums of the largest values of each adapter. For adapters of one rank.
    MagnitudePrune,
    /// [`MagnitudePrune`](Self::MagnitudePrune) on the updates.
    MagnitudePruneSvd,
}

impl Combination {
    /// The combination that this number of adapters gets: a single adapter is always combined
    /// linearly, which is exact.
    pub fn of(self, adapters: usize) -> Self {
        match adapters {
            1 => Self::Linear,
            _ => self,
        }
    }

    /// The combination and the options for a whole model, whose largest rank this is: decided once,
    /// so that a layer with only one of the adapters follows the same options. A single adapter is
    /// combined linearly, where none of the options apply.
    pub(crate) fn for_adapters(
        self,
        adapters: usize,
        options: &CombineOptions,
        largest: usize,
    ) -> (Self, CombineOptions) {
        let combination = self.of(adapters);
        let mut options = match combination == self {
            true => options.clone(),
            false => CombineOptions::default(),
        };
        if combination.on_updates() && options.svd_rank.is_none() {
            options.svd_rank = Some(largest);
        }
        (combination, options)
    }

    pub(in crate::manage::combine) fn on_updates(self) -> bool {
        use Combination::*;
        matches!(
            self,
            Svd | TiesSvd | DareLinearSvd | DareTiesSvd | MagnitudePruneSvd
        )
    }

    pub(in crate::manage::combine) fn needs_density(self) -> bool {
        !matches!(self, Self::Linear | Self::Cat | Self::Svd)
    }
}

/// Whose sign wins where adapters differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MajoritySign {
    /// The sign of the sum of the values.
    #[default]
    Total,
    /// The sign of most values.
    Frequency,
}

/// Settings of a [`Combination`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CombineOptions {
    /// Rank of the result of combinations that end in `Svd`. `None` takes the largest rank of the
    /// adapters.
    pub svd_rank: Option<usize>,
    /// For the same combinations: clips the values of A and B to ±q, where q is this quantile of
    /// these values, in `0.0..=1.0`.
    pub svd_clamp: Option<f64>,
    /// The share of values that are kept, above 0 and at most 1. Needed by Ties, Dare and
    /// MagnitudePrune.
    pub density: Option<f64>,
    /// Whose sign wins in Ties and DareTies.
    pub majority_sign: MajoritySign,
    /// What Dare draws; `None` for another choice each time. A layer's draw depends on its path, not on
    /// the other layers.
    pub seed: Option<u64>,
}

impl CombineOptions {
    /// Sets [`svd_rank`](Self::svd_rank).
    pub fn svd_rank(mut self, rank: usize) -> Self {
        self.svd_rank = Some(rank);
        self
    }

    /// Sets [`svd_clamp`](Self::svd_clamp).
    pub fn svd_clamp(mut self, quantile: f64) -> Self {
        self.svd_clamp = Some(quantile);
        self
    }

    /// Sets [`density`](Self::density).
    pub fn density(mut self, density: f64) -> Self {
        self.density = Some(density);
        self
    }

    /// Sets [`majority_sign`](Self::majority_sign).
    pub fn majority_sign(mut self, majority_sign: MajoritySign) -> Self {
        self.majority_sign = majority_sign;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}
