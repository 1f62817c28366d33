//! Which vector instructions the kernels use, and the [`Element`]s they compute with.
//!
//! A kernel is written once, for any width, as a [`pulp::WithSimd`]; [`run`] calls the version for
//! the instructions at hand.

use super::functions::{erf_f32, erf_f64_lanes, exp_f32, exp_f64};
use candle_core::{CpuStorage, WithDType};
use pulp::bytemuck::Pod;
use pulp::{Arch, Simd, WithSimd};
use std::ops::{Add, AddAssign, Div, Mul, Sub};
use std::sync::atomic::{AtomicU8, Ordering};

/// A set of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Only those that the target always has.
    Plain = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512.
    Avx512 = 3,
}

/// The level in use; 0 before it is known.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The vector instructions that the CPU kernels use: the best that the processor has, or what the
/// environment variable `LORA_SIMD` asks for (`plain`, `avx2` or `avx512`).
///
/// Matrix products are not part of this: they follow the processor alone, and the feature `avx512`.
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Plain,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => {
            let wanted = match std::env::var("LORA_SIMD").as_deref() {
                Ok("plain") => Level::Plain,
                Ok("avx2") => Level::Avx2,
                _ => Level::Avx512,
            };
            force_level(wanted)
        }
    }
}

/// Makes the kernels use this level, or the best level below that the processor has. Returns the
/// level in use.
#[doc(hidden)]
pub fn force_level(wanted: Level) -> Level {
    let level = match (wanted, Arch::new()) {
        #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
        (Level::Avx512, Arch::V4(_)) => Level::Avx512,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512 | Level::Avx2, _) if pulp::x86::V3::try_new().is_some() => Level::Avx2,
        _ => Level::Plain,
    };
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// Runs a kernel with the instructions in use.
#[inline]
pub(crate) fn run<K: WithSimd>(kernel: K) -> K::Output {
    let level = level();
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
    if level == Level::Avx512
        && let Some(simd) = pulp::x86::V4::try_new()
    {
        return Simd::vectorize(simd, kernel);
    }
    #[cfg(target_arch = "x86_64")]
    if level != Level::Plain
        && let Some(simd) = pulp::x86::V3::try_new()
    {
        return Simd::vectorize(simd, kernel);
    }
    match level {
        // Instructions that the target always has, NEON for one.
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx512 | Level::Avx2 => Arch::new().dispatch(kernel),
        _ => Simd::vectorize(pulp::Scalar::new(), kernel),
    }
}

/// A number that the kernels compute with: f32 or f64.
///
/// The `raw` functions are what [`Vector`] is made of.
pub(crate) trait Element:
    WithDType
    + Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    /// As many numbers as one instruction handles; [`Vector`] is the way to compute with them.
    type Raw<S: Simd>: Copy + Pod + Send + Sync;

    const ZERO: Self;
    const ONE: Self;

    fn of(value: f64) -> Self;
    fn exponential(self) -> Self;
    /// The natural logarithm.
    fn logarithm(self) -> Self;

    fn raw_splat<S: Simd>(simd: S, value: Self) -> Self::Raw<S>;
    fn raw_add<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    fn raw_sub<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    fn raw_mul<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    fn raw_div<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    fn raw_max<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    /// a·b + c, rounded once where the instructions allow.
    fn raw_mul_add<S: Simd>(
        simd: S,
        a: Self::Raw<S>,
        b: Self::Raw<S>,
        c: Self::Raw<S>,
    ) -> Self::Raw<S>;
    /// 1 where a > b, else 0.
    fn raw_above<S: Simd>(simd: S, a: Self::Raw<S>, b: Self::Raw<S>) -> Self::Raw<S>;
    /// The sum of a vector's numbers.
    fn raw_sum<S: Simd>(simd: S, a: Self::Raw<S>) -> Self;
    /// The largest of a vector's numbers.
    fn raw_largest<S: Simd>(simd: S, a: Self::Raw<S>) -> Self;
    fn raw_exp<S: Simd>(simd: S, a: Self::Raw<S>) -> Self::Raw<S>;
    fn raw_erf<S: Simd>(simd: S, a: Self::Raw<S>) -> Self::Raw<S>;

    /// Whole vectors, and what is left.
    fn raw_split<S: Simd>(slice: &[Self]) -> (&[Self::Raw<S>], &[Self]);
    fn raw_split_mut<S: Simd>(slice: &mut [Self]) -> (&mut [Self::Raw<S>], &mut [Self]);
    /// Less than a vector, the rest zeros.
    fn raw_load<S: Simd>(simd: S, slice: &[Self]) -> Self::Raw<S>;
    /// As much of a vector as fits.
    fn raw_store<S: Simd>(simd: S, slice: &mut [Self], vector: Self::Raw<S>);

    /// The values of a storage on the CPU, if they are of this type.
    fn values(storage: &CpuStorage) -> Option<&[Self]>;

    /// Numbers in a vector.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Raw<S>>() / size_of::<Self>()
    }
}

/// A vector of numbers, with the operators of one. Inside of a kernel each is one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Vector<T: Element, S: Simd> {
    simd: S,
    raw: T::Raw<S>,
}

impl<T: Element, S: Simd> Vector<T, S> {
    #[inline(always)]
    pub(crate) fn new(simd: S, raw: T::Raw<S>) -> Self {
        Self { simd, raw }
    }

    #[inline(always)]
    pub(crate) fn raw(self) -> T::Raw<S> {
        self.raw
    }

    #[inline(always)]
    pub(crate) fn splat(simd: S, value: T) -> Self {
        Self::new(simd, T::raw_splat(simd, value))
    }

    #[inline(always)]
    pub(crate) fn zero(simd: S) -> Self {
        Self::splat(simd, T::ZERO)
    }

    /// The same number in every lane, beside this vector.
    #[inline(always)]
    pub(crate) fn all(self, value: f64) -> Self {
        Self::splat(self.simd, T::of(value))
    }

    /// The start of a slice; zeros where it is shorter than a vector.
    #[inline(always)]
    pub(crate) fn load(simd: S, slice: &[T]) -> Self {
        let raw = match T::raw_split::<S>(slice).0 {
            [first, ..] => *first,
            [] => T::raw_load(simd, slice),
        };
        Self::new(simd, raw)
    }

    /// Into the start of a slice; as much as fits.
    #[inline(always)]
    pub(crate) fn store(self, slice: &mut [T]) {
        match T::raw_split_mut::<S>(slice) {
            ([first, ..], _) => *first = self.raw,
            ([], rest) => T::raw_store(self.simd, rest, self.raw),
        }
    }

    /// self·b + c, rounded once where the instructions allow.
    #[inline(always)]
    pub(crate) fn mul_add(self, b: Self, c: Self) -> Self {
        Self::new(self.simd, T::raw_mul_add(self.simd, self.raw, b.raw, c.raw))
    }

    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        Self::new(self.simd, T::raw_max(self.simd, self.raw, other.raw))
    }

    /// 1 where self > other, else 0.
    #[inline(always)]
    pub(crate) fn above(self, other: Self) -> Self {
        Self::new(self.simd, T::raw_above(self.simd, self.raw, other.raw))
    }

    /// e^self
    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        Self::new(self.simd, T::raw_exp(self.simd, self.raw))
    }

    /// The hyperbolic tangent of factor·self, 1 − 2 / (1 + e^(2·factor·self)).
    #[inline(always)]
    pub(crate) fn tanh_of(self, factor: f64) -> Self {
        let (one, two) = (self.all(1.0), self.all(2.0));
        one - two / (one + (self * self.all(2.0 * factor)).exp())
    }

    /// The error function.
    #[inline(always)]
    pub(crate) fn erf(self) -> Self {
        Self::new(self.simd, T::raw_erf(self.simd, self.raw))
    }

    /// The sum of the lanes.
    #[inline(always)]
    pub(crate) fn sum(self) -> T {
        T::raw_sum(self.simd, self.raw)
    }

    /// The largest lane.
    #[inline(always)]
    pub(crate) fn largest(self) -> T {
        T::raw_largest(self.simd, self.raw)
    }
}

macro_rules! operator {
    ($trait:ident, $name:ident, $raw:ident) => {
        impl<T: Element, S: Simd> $trait for Vector<T, S> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Self::new(self.simd, T::$raw(self.simd, self.raw, other.raw))
            }
        }
    };
}

operator!(Add, add, raw_add);
operator!(Sub, sub, raw_sub);
operator!(Mul, mul, raw_mul);
operator!(Div, div, raw_div);

macro_rules! element {
    (
        $ty:ident, $variant:ident, $vector:ident, $exp:path, $erf:path,
        $splat:ident $add:ident $sub:ident $mul:ident $div:ident $max:ident
        $mul_add:ident $greater:ident $select:ident $sum:ident $largest:ident
        $split:ident $split_mut:ident $load:ident $store:ident
    ) => {
        impl Element for $ty {
            type Raw<S: Simd> = S::$vector;

            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;

            fn of(value: f64) -> Self {
                value as $ty
            }

            fn exponential(self) -> Self {
                self.exp()
            }

            fn logarithm(self) -> Self {
                self.ln()
            }

            #[inline(always)]
            fn raw_splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }

            #[inline(always)]
            fn raw_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn raw_sub<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$sub(a, b)
            }

            #[inline(always)]
            fn raw_mul<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$mul(a, b)
            }

            #[inline(always)]
            fn raw_div<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$div(a, b)
            }

            #[inline(always)]
            fn raw_max<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$max(a, b)
            }

            #[inline(always)]
            fn raw_mul_add<S: Simd>(
                simd: S,
                a: S::$vector,
                b: S::$vector,
                c: S::$vector,
            ) -> S::$vector {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn raw_above<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                let above = simd.$greater(a, b);
                simd.$select(above, simd.$splat(1.0), simd.$splat(0.0))
            }

            #[inline(always)]
            fn raw_sum<S: Simd>(simd: S, a: S::$vector) -> Self {
                simd.$sum(a)
            }

            #[inline(always)]
            fn raw_largest<S: Simd>(simd: S, a: S::$vector) -> Self {
                simd.$largest(a)
            }

            #[inline(always)]
            fn raw_exp<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                $exp(simd, a)
            }

            #[inline(always)]
            fn raw_erf<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                $erf(simd, a)
            }

            #[inline(always)]
            fn raw_split<S: Simd>(slice: &[Self]) -> (&[S::$vector], &[Self]) {
                S::$split(slice)
            }

            #[inline(always)]
            fn raw_split_mut<S: Simd>(slice: &mut [Self]) -> (&mut [S::$vector], &mut [Self]) {
                S::$split_mut(slice)
            }

            #[inline(always)]
            fn raw_load<S: Simd>(simd: S, slice: &[Self]) -> S::$vector {
                simd.$load(slice)
            }

            #[inline(always)]
            fn raw_store<S: Simd>(simd: S, slice: &mut [Self], vector: S::$vector) {
                simd.$store(slice, vector)
            }

            fn values(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    };
}

element!(
    f32, F32, f32s, exp_f32, erf_f32,
    splat_f32s add_f32s sub_f32s mul_f32s div_f32s max_f32s
    mul_add_e_f32s greater_than_f32s select_f32s reduce_sum_f32s reduce_max_f32s
    as_simd_f32s as_mut_simd_f32s partial_load_f32s partial_store_f32s
);

element!(
    f64, F64, f64s, exp_f64, erf_f64_lanes,
    splat_f64s add_f64s sub_f64s mul_f64s div_f64s max_f64s
    mul_add_e_f64s greater_than_f64s select_f64s reduce_sum_f64s reduce_max_f64s
    as_simd_f64s as_mut_simd_f64s partial_load_f64s partial_store_f64s
);

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// Runs a test at every level, one test at a time.
    pub(crate) fn at_every_level(test: impl Fn(Level)) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        for level in [Level::Plain, Level::Avx2, Level::Avx512] {
            test(force_level(level));
        }
    }

    /// Values in −1..1 without a pattern.
    pub(crate) fn values<T: Element>(count: usize, seed: usize) -> Vec<T> {
        let value = |i: usize| ((i + 1 + 101 * seed) as f64 * 0.618_033_988_749_895).fract();
        (0..count).map(|i| T::of(value(i) * 2.0 - 1.0)).collect()
    }

    /// Panics unless the values agree, to an error relative to the largest, or to 1.
    #[track_caller]
    pub(crate) fn assert_close<T: Element>(
        what: &str,
        actual: &[T],
        expected: &[f64],
        tolerance: f64,
    ) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        for (actual, expected) in actual.iter().zip(expected) {
            let error = (actual.to_f64() - expected).abs() / largest;
            assert!(error <= tolerance, "{what}: {actual} for {expected}");
        }
    }
}
