//! Functions of vectors that are no single instruction.

use candle_core::cpu::erf::erf_f64;
use pulp::Simd;

/// The sum of c\[i\]·x^i, the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(coefficient));
    }
    sum
}

/// e^x to an error of 2 ulp; 0 below −87, and no more than e^88; NaN stays NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2: the power of two goes into the exponent's bits, e^r is its
/// Taylor series. ln 2 is taken off in two parts, the first exact in few bits.
#[inline(always)]
pub(super) fn exp_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding 1.5·2^23 rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let number = simd.equal_f32s(x, x);
    let given = x;
    let x = simd.min_f32s(x, simd.splat_f32s(88.0));
    let zero = simd.less_than_f32s(x, simd.splat_f32s(-87.0));
    let x = simd.max_f32s(x, simd.splat_f32s(-87.0));
    let log2e = simd.splat_f32s(std::f32::consts::LOG2_E);
    let rounded = simd.mul_add_e_f32s(x, log2e, simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let series = polynomial(
        simd,
        r,
        [
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ],
    );
    let bits = simd.transmute_u32s_f32s(rounded);
    let exponent = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let scaled = simd.add_u32s(simd.transmute_u32s_f32s(series), exponent);
    let scaled = simd.select_f32s(number, simd.transmute_f32s_u32s(scaled), given);
    simd.select_f32s(zero, simd.splat_f32s(0.0), scaled)
}

/// erf(x) to an error of a few ulp: a rational function of degrees 13 and 8 on −4..4, beyond which
/// it is ±1 in f32. The coefficients are those that Eigen and XLA use.
#[inline(always)]
pub(super) fn erf_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.min_f32s(x, simd.splat_f32s(4.0));
    let x = simd.max_f32s(x, simd.splat_f32s(-4.0));
    let square = simd.mul_f32s(x, x);
    let above = polynomial(
        simd,
        square,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_4e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below = polynomial(
        simd,
        square,
        [
            -1.456_607_2e-5,
            -2.133_740_5e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    simd.div_f32s(simd.mul_f32s(x, above), below)
}

#[inline(always)]
pub(super) fn exp_f64<S: Simd>(_: S, x: S::f64s) -> S::f64s {
    each_lane::<S>(x, f64::exp)
}

#[inline(always)]
pub(super) fn erf_f64_lanes<S: Simd>(_: S, x: S::f64s) -> S::f64s {
    each_lane::<S>(x, erf_f64)
}

/// f64 is for checks, not for speed.
#[inline(always)]
fn each_lane<S: Simd>(mut x: S::f64s, f: fn(f64) -> f64) -> S::f64s {
    let lanes: &mut [f64] = pulp::bytemuck::cast_slice_mut(std::slice::from_mut(&mut x));
    lanes.iter_mut().for_each(|x| *x = f(*x));
    x
}

/// What the tests of the kernels share.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::testing::at_every_level;
    use crate::kernels::simd::{Element, run};
    use pulp::WithSimd;

    struct Map<'a>(&'a mut [f32], bool);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, _) = f32::raw_split_mut::<S>(self.0);
            for vector in vectors {
                *vector = if self.1 {
                    exp_f32(simd, *vector)
                } else {
                    erf_f32(simd, *vector)
                };
            }
        }
    }

    fn largest_error(exp: bool, exact: fn(f64) -> f64, range: f32) -> f64 {
        let xs: Vec<f32> = (0..1 << 16)
            .map(|i| (i as f32 / 32768.0 - 1.0) * range)
            .collect();
        let mut ys = xs.clone();
        run(Map(&mut ys, exp));
        let errors = xs.iter().zip(&ys).map(|(&x, &y)| {
            let exact = exact(f64::from(x));
            (f64::from(y) - exact).abs() / exact.abs().max(1e-30)
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_exact_to_a_few_ulp() {
        at_every_level(|level| {
            assert!(largest_error(true, f64::exp, 86.9) < 2.5e-7, "{level:?}");
            assert!(largest_error(false, erf_f64, 6.0) < 6e-7, "{level:?}");
            let mut edges = vec![f32::NEG_INFINITY, -200.0, 0.0, f32::NAN];
            edges.resize(16, 0.0);
            run(Map(&mut edges, true));
            assert_eq!(edges[..3], [0.0, 0.0, 1.0], "{level:?}");
            assert!(edges[3].is_nan(), "{level:?}");
        });
    }
}
