//! The cross-entropy beyond PyTorch's fixtures: labels that do not count, blocks of rows, errors.

use candle_core::{DType, Device, Result, Tensor};
use lora::ops::{self, CrossEntropy};
use lora_tests::{assert_close, check_gradients, fixed, var};

const F64: DType = DType::F64;

fn labels(values: &[i64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn gradients_are_those_of_differences() {
    let (x, weight, bias) = (var((2, 3, 4), 1), var((5, 4), 2), var(5, 3));
    let words = labels(&[0, -100, 4, 2, 2, -100]).reshape((2, 3)).unwrap();
    let weights = Tensor::new(&[0.5, 1.0, 2.0, 0.1, 1.5], &Device::Cpu).unwrap();
    let plain = CrossEntropy::new();
    let rich = (plain.clone().label_smoothing(0.2).class_weights(&weights))
        .logit_scale(0.7)
        .soft_cap(1.5);
    for criterion in [plain, rich.clone(), rich.sum()] {
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
        check_gradients(&format!("{criterion:?}"), &vars, || {
            criterion.of_linear(&x, &weight, Some(&bias), &words)
        });
        let logits = var((2, 3, 5), 4);
        check_gradients(&format!("{criterion:?}"), &[("logits", &logits)], || {
            // Used twice, with a gradient of the loss that is not 1.
            criterion.of_logits(&logits, &words)? * 3.0
        });
    }
}

#[test]
fn many_rows_go_block_by_block() -> Result<()> {
    // 40 MB of logits in f64: two blocks.
    let (rows, inputs, classes) = (50, 3, 100_000);
    let (x, weight) = (var((rows, inputs), 1), var((classes, inputs), 2));
    let words: Vec<i64> = (0..rows as i64)
        .map(|row| row * 1999 % classes as i64)
        .collect();
    let words = labels(&words);
    let criterion = CrossEntropy::new();
    let logits = x.matmul(&weight.t()?)?;
    let [whole, parts] = [
        criterion.of_logits(&logits, &words)?,
        criterion.of_linear(&x, &weight, None, &words)?,
    ];
    assert_close("loss", &parts, &whole, 1e-12);
    let (whole, parts) = (whole.backward()?, parts.backward()?);
    for (name, var) in [("x", &x), ("weight", &weight)] {
        assert_close(
            name,
            parts.get(var).unwrap(),
            whole.get(var).unwrap(),
            1e-10,
        );
    }
    Ok(())
}

#[test]
fn batches_without_a_label_that_counts() -> Result<()> {
    let (x, weight) = (var((3, 4), 1), var((5, 4), 2));
    let none = labels(&[-100; 3]);
    for criterion in [CrossEntropy::new(), CrossEntropy::new().sum()] {
        let loss = criterion.of_linear(&x, &weight, None, &none)?;
        assert_eq!(loss.to_scalar::<f64>()?, 0.0);
        let grads = loss.backward()?;
        for var in [&x, &weight] {
            assert_eq!(
                grads
                    .get(var)
                    .unwrap()
                    .abs()?
                    .sum_all()?
                    .to_scalar::<f64>()?,
                0.0
            );
        }
    }
    let empty = Tensor::zeros((0, 4), F64, &Device::Cpu)?;
    let loss = CrossEntropy::new().of_linear(&empty, &weight, None, &labels(&[]))?;
    assert_eq!(loss.to_scalar::<f64>()?, 0.0);
    Ok(())
}

#[test]
fn labels_of_every_integer_dtype() -> Result<()> {
    let logits = fixed((3, 5), F64, 1);
    let signed = labels(&[2, -100, 4]);
    let expected = ops::cross_entropy(&logits, &signed)?;
    // -100 as a cast to u32 leaves the label.
    let cast = signed.to_dtype(DType::U32)?;
    assert_close("u32", &ops::cross_entropy(&logits, &cast)?, &expected, 0.0);
    let small = Tensor::new(&[2u8, 255, 4], &Device::Cpu)?;
    let criterion = CrossEntropy::new().ignored_label(255);
    assert_close("u8", &criterion.of_logits(&logits, &small)?, &expected, 0.0);
    let padded = CrossEntropy::new().ignored_label(0);
    let loss = padded.of_logits(&logits, &labels(&[2, 0, 4]))?;
    assert_close("0", &loss, &expected, 0.0);
    Ok(())
}

#[test]
fn half_values_have_a_loss_in_f32() -> Result<()> {
    let (x, weight) = (fixed((6, 8), F64, 1), fixed((40, 8), F64, 2));
    let words = labels(&[1, 2, 39, 0, -100, 7]);
    for dtype in [DType::BF16, DType::F16] {
        let [x, weight] = [&x, &weight].map(|tensor| tensor.to_dtype(dtype).unwrap());
        let loss = CrossEntropy::new().of_linear(&x, &weight, None, &words)?;
        let [x, weight] = [x, weight].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        let exact = CrossEntropy::new().of_linear(&x, &weight, None, &words)?;
        assert_close("loss", &loss, &exact, 0.0);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() {
    let (logits, words) = (fixed((3, 5), F64, 1), labels(&[2, 7, 4]));
    let error = |result: Result<Tensor>| result.unwrap_err().to_string();
    let message = error(ops::cross_entropy(&logits, &words));
    let expected = "cross-entropy: label 7 of row 1 is no class, there are 5; a label that does not \
                    count is -100";
    assert_eq!(message.lines().next(), Some(expected));
    let words = labels(&[2, 1]);
    let message = error(ops::cross_entropy(&logits, &words));
    assert!(
        message.starts_with("cross-entropy: an input of [3, 5] needs labels of [3], they are [2]")
    );
    let words = labels(&[2, 1, 0]);
    let message = error(ops::cross_entropy(&logits, &words.to_dtype(F64).unwrap()));
    assert!(message.starts_with("cross-entropy: labels must be integers, they are F64"));
    let message = error(
        CrossEntropy::new()
            .label_smoothing(1.5)
            .of_logits(&logits, &words),
    );
    assert!(message.starts_with("cross-entropy: label smoothing must be in 0 to 1, it is 1.5"));
    let message = error(CrossEntropy::new().soft_cap(0.0).of_logits(&logits, &words));
    assert!(message.starts_with("cross-entropy: the soft cap must be above 0"));
    let weights = fixed(4, F64, 2);
    let message = error(
        CrossEntropy::new()
            .class_weights(&weights)
            .of_logits(&logits, &words),
    );
    assert!(message.starts_with("cross-entropy: 5 classes need as many weights, they are [4]"));
    let weight = fixed((7, 4), F64, 3);
    let message = error(CrossEntropy::new().of_linear(&logits, &weight, None, &words));
    assert!(
        message.starts_with(
            "cross-entropy: a weight of [7, 4] in F64 does not fit an input of [3, 5]"
        )
    );
}
