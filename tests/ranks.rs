//! Training by several ranks, however they reach each other: the models, the data, the runs.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor};
use candle_nn::{BatchNorm, Linear};
use lora::data::BatchOptions;
use lora::optim::{AdamW, LoraPlus};
use lora::train::{
    Course, Event, Every, Examples, Loss, Metrics, Parallel, Step, TrainOptions, Trained, Trainer,
};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, values};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;

#[derive(Clone, Debug, LoraModel)]
pub struct Net {
    fc1: Linear,
    norm: BatchNorm,
    fc2: Linear,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.apply(&self.fc1)?.tanh()?;
        let xs = self.norm.forward_t(&xs, true)?;
        xs.apply(&self.fc2)?.tanh()?.apply(&self.head)
    }
}

pub const EXAMPLES: usize = 23;

/// A run that all ranks make.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub config: LoraConfig,
    pub options: TrainOptions,
    /// Examples in a batch, of all ranks together.
    pub batch: usize,
    pub output: Option<PathBuf>,
    pub resume: bool,
    /// The rank that asks to stop, and after how many steps.
    pub stop: Option<(usize, usize)>,
}

/// What a run came to on a rank.
pub struct Done {
    pub trained: Trained,
    pub model: LoraNet,
    /// What watchers were told of.
    pub steps: Vec<Step>,
    /// How often the model was evaluated.
    pub evaluated: usize,
}

pub fn plain() -> Case {
    let config = LoraConfig::new(2).target_modules(["fc1", "fc2"]).seed(0);
    let options = TrainOptions::steps(10)
        .course(Course::Cosine)
        .warmup(0.2)
        .clip(0.3)
        .seed(5);
    Case {
        name: "plain",
        config,
        options: options.evaluate(Every::Steps(3)).save(Every::Steps(2)),
        batch: 8,
        output: None,
        resume: false,
        stop: None,
    }
}

/// A kind of run each: what is trained, what makes a step. The last batch of each epoch is smaller.
pub fn cases() -> Vec<Case> {
    let with = |name, change: &dyn Fn(&mut Case)| {
        let mut case = plain();
        case.name = name;
        change(&mut case);
        case
    };
    vec![
        plain(),
        // DoRA's norms count as constants, so that its gradient is not quite the slope of the loss.
        with("DoRA", &|case| {
            case.config = case.config.clone().use_dora(true);
            case.options.check_gradients = false;
        }),
        with("a trained head", &|case| {
            case.config = case.config.clone().modules_to_save(["head", "norm"]);
        }),
        with("accumulation", &|case| {
            case.options = case.options.clone().accumulate(2);
        }),
        // 23 examples are batches of 7, 7, 7 and 2: three ranks of four have none or one of the last.
        with("uneven batches", &|case| case.batch = 7),
        with(
            "accumulation of uneven batches, without clipping",
            &|case| {
                case.options = case.options.clone().accumulate(3);
                case.options.clip = None;
                case.batch = 5;
            },
        ),
    ]
}

pub fn model(config: &LoraConfig) -> LoraNet {
    model_of(config, 3)
}

/// With the head of this seed.
pub fn model_of(config: &LoraConfig, head: usize) -> LoraNet {
    let linear = |shape, seed| Linear::new(fixed(shape, DType::F32, seed), None);
    let [mean, weight, bias] = [11, 12, 13].map(|seed| fixed(8, DType::F32, seed));
    let var = Tensor::full(0.5f32, 8, &Device::Cpu).unwrap();
    let net = Net {
        fc1: linear((8, 6), 1),
        norm: BatchNorm::new(8, mean, var, weight, bias, 1e-5).unwrap(),
        fc2: linear((8, 8), 2),
        head: linear((3, 8), head),
    };
    net.to_lora(config).unwrap()
}

pub type Batch = (Tensor, Tensor, Tensor);

/// Inputs, outputs to learn, and how many outputs of each example count: 1 to 3, as an answer has many or
/// few tokens.
pub fn batch(numbers: &[usize]) -> lora::Result<Batch> {
    let places = numbers.iter().map(|&number| number as u32);
    let places = Tensor::from_iter(places, &Device::Cpu)?;
    let xs = fixed((EXAMPLES, 6), DType::F32, 4).index_select(&places, 0)?;
    let ys = fixed((EXAMPLES, 3), DType::F32, 5).index_select(&places, 0)?;
    let counts = numbers.iter().flat_map(|number| {
        let counted = 1 + number % 3;
        (0..3).map(move |place| f32::from(u8::from(place < counted)))
    });
    let counts = Tensor::from_iter(counts, &Device::Cpu)?.reshape((numbers.len(), 3))?;
    Ok((xs, ys, counts))
}

pub fn loss(model: &LoraNet, (xs, ys, counts): &Batch) -> lora::Result<Loss> {
    let errors = ((model.forward(xs)? - ys)?.sqr()? * counts)?.sum_all()?;
    let count = counts.sum_all()?.to_scalar::<f32>()?;
    Ok(Loss::over_tokens(
        (errors / f64::from(count))?,
        count as usize,
    ))
}

pub fn optimizer(model: &mut LoraNet) -> lora::Result<AdamW> {
    LoraPlus::new(5e-3, 4.0).adamw(model)
}

/// The rank's part of a run.
pub fn train(case: &Case, parallel: &Parallel) -> lora::Result<Done> {
    // Only rank 0's initial values count, and what was drawn before counts on no rank.
    let seed = parallel.rank() as u64;
    lora::seed_dropout(seed);
    let mut model = model(&case.config.clone().seed(seed));
    let options = BatchOptions::new(case.batch).seed(7);
    let mut source = Examples::new((0..EXAMPLES).map(|number| 1 + number % 5), &options, batch)?;
    let (steps, evaluated, taken) = (RefCell::new(Vec::new()), Cell::new(0), Cell::new(0));
    let mut trainer = Trainer::new(case.options.clone())
        .parallel(parallel)
        .resume(case.resume)
        .watch(|event| {
            if let Event::Step(step) = event {
                steps.borrow_mut().push((*step).clone());
            }
            Ok(())
        })
        .stop_when(|| {
            taken.set(taken.get() + 1);
            case.stop == Some((parallel.rank(), taken.get()))
        })
        .evaluate(|model: &LoraNet| {
            evaluated.set(evaluated.get() + 1);
            let all: Vec<usize> = (0..EXAMPLES).collect();
            let loss = loss(model, &batch(&all)?)?.mean.to_scalar::<f32>()?;
            Ok(Metrics::from([("loss", f64::from(loss))]))
        });
    if let Some(output) = &case.output {
        trainer = trainer.output(output);
    }
    let trained = trainer.run(&mut model, &mut source, optimizer, loss)?;
    drop(trainer);
    Ok(Done {
        trained,
        model,
        steps: steps.into_inner(),
        evaluated: evaluated.get(),
    })
}

/// All that is trained.
pub fn weights(model: &LoraNet) -> Vec<f64> {
    let vars = model.trainable_vars();
    vars.iter().flat_map(|var| values(var).unwrap()).collect()
}

/// Panics unless the numbers agree to this absolute error.
#[track_caller]
pub fn assert_near(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let differences = actual.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let largest = differences.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    assert!(largest <= tolerance, "{what}: {largest:e}");
}
