//! The check itself: many layers in 16 passes, dropout, a loss that does not repeat, failures on the
//! way.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Linear, Module};
use lora::{Error, Init, LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::fixed;
use std::cell::Cell;

type Function = fn(&Tensor) -> Result<Tensor>;

/// A block of a transformer's shape: something of the input, beside a shortcut.
#[derive(Clone, Debug, LoraModel)]
struct Block {
    #[lora(skip)]
    function: Function,
    #[lora(rank)]
    fc: Linear,
    #[lora(rank)]
    out: Linear,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = (self.function)(xs)?.apply(&self.fc)?.tanh()?;
        xs + ys.apply(&self.out)?
    }
}

/// Blocks in a row, the one at `cut` with this function.
fn blocks(count: usize, cut: usize, function: Function) -> Vec<Block> {
    let whole: Function =
        |xs| lora::ops::rms_norm(xs, &Tensor::ones(8, DType::F32, xs.device())?, 1e-5);
    let weight = |seed| (fixed((8, 8), DType::F32, seed) * 0.6).unwrap();
    let block = |i| Block {
        function: if i == cut { function } else { whole },
        fc: Linear::new(weight(2 * i), None),
        out: Linear::new(weight(2 * i + 1), None),
    };
    (0..count).map(block).collect()
}

fn loss(blocks: &[LoraBlock]) -> lora::Result<Tensor> {
    let mut xs = fixed((2, 5, 8), DType::F32, 100);
    for block in blocks {
        xs = block.forward(&xs)?;
    }
    Ok((xs - fixed((2, 5, 8), DType::F32, 101))?
        .sqr()?
        .mean_all()?)
}

fn norm_of_candle(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::rms_norm(xs, &Tensor::ones(8, DType::F32, xs.device())?, 1e-5)
}

/// 64 layers in 16 passes; the cut of one block is not lost among them.
#[test]
fn many_layers() {
    let config = LoraConfig::new(2).init(Init::Random).seed(1);
    let whole = blocks(32, 99, norm_of_candle).to_lora(&config).unwrap();
    let passes = Cell::new(0);
    let check = whole.check_gradients(|model| {
        passes.set(passes.get() + 1);
        loss(model)
    });
    let check = check.unwrap();
    assert_eq!(
        (check.layers, check.passes, passes.get()),
        (64, 16, 16),
        "{check}"
    );
    assert!(check.worst < 0.02, "{check}");

    let cut = blocks(32, 16, norm_of_candle).to_lora(&config).unwrap();
    match cut.check_gradients(|model| loss(model)) {
        Err(Error::WrongGradient {
            layers,
            checked: 64,
        }) => {
            // What lies below the cut, and of that nothing above.
            let number = |line: &String| line.split('.').next().unwrap().parse::<usize>().unwrap();
            assert!(layers.iter().all(|line| number(line) < 16), "{layers:#?}");
            assert!(layers.iter().any(|line| number(line) >= 12), "{layers:#?}");
        }
        other => panic!("{other:?}"),
    }
}

/// A fresh adapter: three blocks, as the public reports have them.
#[test]
fn fresh_adapters() {
    let model = blocks(3, 1, norm_of_candle)
        .to_lora(&LoraConfig::new(2).seed(1))
        .unwrap();
    model.backward(&loss(&model).unwrap()).unwrap();
    let error = model
        .check_gradients(|model| loss(model))
        .unwrap_err()
        .to_string();
    assert!(error.contains("0.fc") && error.contains("0.out"), "{error}");
    assert!(
        !error.contains("1.fc") && !error.contains("2.out"),
        "{error}"
    );
}

/// Dropout stays on: each pass draws the masks of the first.
#[test]
fn dropout() {
    let config = LoraConfig::new(2).init(Init::Random).seed(1).dropout(0.3);
    let model = blocks(3, 9, norm_of_candle).to_lora(&config).unwrap();
    ops::seed_dropout(5);
    model.check_gradients(|model| loss(model)).unwrap();
}

#[test]
fn a_loss_that_does_not_repeat() {
    let model = blocks(2, 9, norm_of_candle)
        .to_lora(&LoraConfig::new(2))
        .unwrap();
    let calls = Cell::new(0);
    let error = model.check_gradients(|model| {
        calls.set(calls.get() + 1);
        Ok((loss(model)? * f64::from(calls.get()))?)
    });
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("give the same batch in every call"),
        "{error}"
    );
}

/// The parameters come back when the loss fails on the way.
#[test]
fn a_loss_that_fails() {
    let model = blocks(2, 9, norm_of_candle)
        .to_lora(&LoraConfig::new(2))
        .unwrap();
    let values = || {
        let vars = model.trainable_vars();
        vars.iter()
            .map(|var| lora_tests::values(var).unwrap())
            .collect::<Vec<_>>()
    };
    let before = values();
    let calls = Cell::new(0);
    let error = model.check_gradients(|model| {
        calls.set(calls.get() + 1);
        match calls.get() {
            4 => Err(Error::Config(vec!["stop".into()])),
            _ => loss(model),
        }
    });
    assert!(error.unwrap_err().to_string().contains("stop"));
    assert_eq!(values(), before);
}

/// Nothing to check is an error, as nothing would be trained.
#[test]
fn nothing_to_train() {
    let model = blocks(1, 9, norm_of_candle).to_frozen().unwrap();
    let error = model
        .check_gradients(|model| loss(model))
        .unwrap_err()
        .to_string();
    assert!(error.contains("nothing to train"), "{error}");
}

/// DoRA's norms are constants of the gradient; B is not zero, so that the norms of the loss move.
#[test]
fn the_norms_of_dora_are_constants() {
    let config = LoraConfig::new(2).init(Init::Random).seed(1).use_dora(true);
    let model = blocks(4, usize::MAX, norm_of_candle)
        .to_lora(&config)
        .unwrap();
    let before = values(&model);
    let check = model.check_gradients(|model| loss(model)).unwrap();
    assert_eq!(check.layers, 8);
    assert!(check.worst < 0.01, "{check}");
    assert_eq!(values(&model), before, "every variable is as before");

    let model = blocks(4, 1, norm_of_candle).to_lora(&config).unwrap();
    let error = model.check_gradients(|model| loss(model)).unwrap_err();
    assert!(error.to_string().contains("0.fc"), "{error}");
}

fn values(model: &Vec<LoraBlock>) -> Vec<Vec<f32>> {
    let values = |param: lora::NamedParam| param.tensor.flatten_all()?.to_vec1();
    let params = model.named_params().into_iter().map(values);
    params.collect::<Result<_>>().unwrap()
}
