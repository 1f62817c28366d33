//! Every op through every vector instruction set, against PyTorch.
//!
//! The level is the process's: this binary has one test, and no other one runs beside it.

use candle_core::DType;
use lora::__private::{Level, force_simd};
use lora_tests::op_fixtures::{THEMES, cases};

#[test]
fn every_op_on_every_level() {
    let levels = [Level::Plain, Level::Avx2, Level::Avx512];
    let cases: Vec<_> = THEMES.iter().flat_map(|theme| cases(theme)).collect();
    for wanted in levels {
        // A processor without it runs the next lower again.
        let level = force_simd(wanted);
        for case in &cases {
            case.check(&format!("{level:?}"), DType::F32, 1e-5);
            case.check(&format!("{level:?} f64"), DType::F64, 2e-6);
        }
    }
}
