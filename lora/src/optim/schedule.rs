//! The learning rate's course.

use std::f64::consts::PI;

/// The factor of the learning rate at each step, with a linear warm-up.
///
/// The values are those of `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup`
/// and `get_cosine_schedule_with_warmup` in transformers, with one exception: after its last step a
/// cosine stays at 0 here and rises again there.
///
/// ```
/// use lora::optim::Schedule;
///
/// let schedule = Schedule::cosine(110).warmup(10);
/// assert_eq!(schedule.factor(0), 0.0);
/// assert_eq!(schedule.factor(5), 0.5);
/// assert_eq!(schedule.factor(10), 1.0);
/// assert!((schedule.factor(60) - 0.5).abs() < 1e-15);
/// assert_eq!(schedule.factor(110), 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    shape: Shape,
    warmup: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Constant,
    Linear { steps: usize },
    Cosine { steps: usize },
}

impl Schedule {
    /// 1 at every step.
    pub fn constant() -> Self {
        Self::new(Shape::Constant)
    }

    /// From 1 down to 0 at this step, the warm-up included, on a line.
    pub fn linear(steps: usize) -> Self {
        Self::new(Shape::Linear { steps })
    }

    /// From 1 down to 0 at this step, the warm-up included, on half a cosine.
    pub fn cosine(steps: usize) -> Self {
        Self::new(Shape::Cosine { steps })
    }

    fn new(shape: Shape) -> Self {
        Self { shape, warmup: 0 }
    }

    /// Lets the factor rise from 0 at step 0 to 1 at this step, on a line.
    pub fn warmup(mut self, steps: usize) -> Self {
        self.warmup = steps;
        self
    }

    /// The factor at a step, which counts from 0.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let done = |steps: usize| {
            let length = steps.saturating_sub(self.warmup).max(1);
            ((step - self.warmup) as f64 / length as f64).min(1.0)
        };
        match self.shape {
            Shape::Constant => 1.0,
            // A course that ends within the warm-up has nothing left after it.
            Shape::Linear { steps } | Shape::Cosine { steps } if step >= steps => 0.0,
            Shape::Linear { steps } => 1.0 - done(steps),
            Shape::Cosine { steps } => 0.5 * (1.0 + (PI * done(steps)).cos()),
        }
    }
}
