//! What is measured of a model, and the line that tells of it.

use super::options::{Args, Mode, Written};
use crate::program;
use anyhow::Result;
use candle_core::{DType, IndexOp, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use lora::ops::cross_entropy;
use lora::{Lora, LoraModel, LoraModule, profile};
use std::time::Instant;

/// What a model computes of a batch.
type Pass<M> = Box<dyn Fn(&M) -> Result<Tensor>>;

/// A model with what a step and a forward pass do to it.
pub(super) struct Bench<M: LoraModel> {
    pub(super) model: Lora<M>,
    pub(super) loss: Pass<Lora<M>>,
    pub(super) output: Pass<Lora<M>>,
}

impl<M: LoraModel> Bench<M> {
    /// A model that tells classes apart, by its logits, in training and not.
    pub(super) fn of_classes(
        model: Lora<M>,
        labels: Tensor,
        logits: impl Fn(&Lora<M>, bool) -> Result<Tensor> + Clone + 'static,
    ) -> Self {
        let output = logits.clone();
        Self {
            model,
            loss: Box::new(move |model| {
                let logits = logits(model, true)?.to_dtype(DType::F32)?;
                Ok(cross_entropy(&logits, &labels)?)
            }),
            output: Box::new(move |model| output(model, false)),
        }
    }

    /// Measures and prints the line.
    pub(super) fn run(self, args: &Args) -> Result<()> {
        let Self {
            mut model,
            loss,
            output,
        } = self;
        let before = memory("VmRSS:");
        let mut step_s = None;
        if args.mode != Mode::Base {
            let params = ParamsAdamW {
                lr: 1e-3,
                ..Default::default()
            };
            let mut optimizer = AdamW::new(model.trainable_vars(), params)?;
            let mut step = || {
                let loss = loss(&model)?;
                optimizer.step(&model.backward(&loss)?)?;
                Ok(())
            };
            step_s = median(args.steps, &mut step)?;
            if args.profile {
                print_profile(step)?;
            }
        }
        let trained = memory("VmHWM:");
        model.eval();
        if args.merge {
            model.merge()?;
        }
        let pass = || {
            // Reads a value, so that the time holds the whole pass on any device.
            let value = output(&model)?.flatten_all()?.i(0)?;
            value.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            Ok(())
        };
        let forward_s = median(args.steps, pass)?;
        if args.profile && args.mode == Mode::Base {
            print_profile(pass)?;
        }
        let peak = match args.mode {
            Mode::Base => memory("VmHWM:"),
            _ => trained,
        };
        let (mode, rank) = match args.mode {
            Mode::Lora => ("lora", Some(args.rank)),
            Mode::Full => ("full", None),
            Mode::Base => ("base", None),
        };
        let written = match args.written {
            Written::Library => "library",
            Written::User => "user",
        };
        let line = serde_json::json!({
            "model": args.model,
            "mode": mode,
            "written": written,
            "rank": rank,
            "batch": args.batch,
            "size": args.size,
            "seq": args.seq,
            "step_s": step_s,
            "forward_s": forward_s,
            "rss_before_mb": before,
            "peak_rss_mb": peak,
            "trainable": model.summary().trainable,
            "threads": candle_core::utils::get_num_threads(),
        });
        program::say(line)
    }
}

/// Prints where the time of a run goes.
fn print_profile(run: impl FnOnce() -> Result<()>) -> Result<()> {
    let (result, report) = profile::record(run);
    program::note(report)?;
    result
}

/// The median time of `count` runs, after one that is not counted.
fn median(count: usize, mut run: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(match times.len() {
        0 => None,
        n => Some((times[(n - 1) / 2] + times[n / 2]) / 2.0),
    })
}

/// A line of Linux's account of this process, in MB.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes / 1024.0 * 10.0).round() / 10.0)
}
