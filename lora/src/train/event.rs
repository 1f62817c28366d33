//! What a run reports while it goes on.

use super::{Evaluation, Trained, Unit};
use crate::GradientCheck;
use serde::Serialize;
use std::path::Path;

/// What happened; see [`Trainer::watch`](super::Trainer::watch).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins, or goes on.
    Begin(&'a Plan),
    /// The gradients of the first batch are right.
    Checked(&'a GradientCheck),
    /// A step was taken.
    Step(&'a Step),
    /// An epoch is over.
    Epoch {
        /// Its number, from 0.
        epoch: usize,
        /// Its mean loss.
        loss: f64,
    },
    /// The model was evaluated.
    Evaluated {
        /// What was found.
        evaluation: &'a Evaluation,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
    /// A harmless thing that a user should know.
    Note(&'a str),
    /// The run is over, or was stopped.
    End(&'a Trained),
}

/// How much there is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The number of steps in all, if it is known.
    pub steps: Option<usize>,
    /// The number of epochs in all, if epochs were asked for.
    pub epochs: Option<usize>,
    /// The number of steps that a run before has done.
    pub done: usize,
}

/// A step, as the log has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// Its number, from 1.
    pub step: usize,
    /// The number of its epoch, from 0.
    pub epoch: usize,
    /// The mean loss of its batches, before the step.
    pub loss: f64,
    /// The learning rate of the optimiser's first group.
    pub lr: f64,
    /// The gradients' norm before clipping, if they are clipped.
    pub grad_norm: Option<f64>,
    /// The number of examples or tokens that the loss is a mean over.
    pub count: usize,
    /// What is counted.
    pub unit: Unit,
    /// How long the step took.
    pub seconds: f64,
}
