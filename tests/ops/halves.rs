//! Half types against the same values in f32.

use candle_core::DType;
use lora_tests::op_fixtures::{THEMES, cases};

#[test]
fn half_types_are_close_to_f32() {
    for case in THEMES.iter().flat_map(|theme| cases(theme)) {
        for dtype in [DType::BF16, DType::F16] {
            let what = format!("{} {dtype:?}", case.name);
            let round = |input: &candle_core::Tensor| input.to_dtype(dtype);
            let wide = |input: &candle_core::Tensor| round(input)?.to_dtype(DType::F32);
            let expected = case.run(wide, |input| Ok(input.clone())).unwrap();
            let results = case.run(round, |input| Ok(input.clone()));
            let results = results.unwrap_or_else(|e| panic!("{what}: {e}"));
            results.assert_close(&what, &expected.output, &expected.grads, 2e-2);
        }
    }
}
