//! The progress of a run on the screen.

use super::trained::median;
use super::{Ended, Event, Plan, Step, Unit};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Steps whose median tells the time of a step.
const RECENT: usize = 20;
/// Elsewhere than on a terminal there is a line at least this often.
const QUIET: Duration = Duration::from_secs(30);

/// The progress of a run: a bar with the loss, tokens or examples a second and the time left on a
/// terminal; elsewhere a line for each epoch and each evaluation, and one every 30 seconds. With the
/// environment variable `NO_COLOR` the bar has no colours.
///
/// [`Trainer::progress`](super::Trainer::progress) shows one.
pub struct Progress {
    bar: Option<ProgressBar>,
    write: Box<dyn FnMut(&str)>,
    plan: Option<Plan>,
    recent: Vec<Step>,
    last_line: Instant,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// On the error output.
    pub fn new() -> Self {
        Self::lines_to(|line| {
            // If this fails, there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{line}");
        })
    }

    /// On the error output if it is a terminal; lines go elsewhere.
    pub fn lines_to(write: impl FnMut(&str) + 'static) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            bar: terminal.then(|| ProgressBar::no_length().with_style(style(None))),
            write: Box::new(write),
            plan: None,
            recent: Vec::new(),
            last_line: Instant::now(),
        }
    }

    /// Shows what happened.
    pub fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin(plan) => self.begin(plan),
            Event::Step(step) => self.step(step),
            Event::Epoch { epoch, loss } => {
                if self.bar.is_none() {
                    self.line(&self.status(*epoch, *loss));
                }
            }
            Event::Evaluated { evaluation, best } => {
                let best = if *best { "  (best)" } else { "" };
                let (step, metrics) = (evaluation.step, &evaluation.metrics);
                self.line(&format!("evaluation after step {step}  {metrics}{best}"));
            }
            Event::End(trained) => {
                if let Some(bar) = &self.bar {
                    bar.finish();
                }
                if trained.ended == Ended::Early
                    || trained.ended == Ended::Stopped && trained.checkpoint.is_some()
                {
                    self.line(&trained.to_string());
                }
            }
            Event::Checked(_) | Event::Saved(_) | Event::Note(_) => {}
        }
    }

    fn begin(&mut self, plan: &Plan) {
        if let Some(bar) = &self.bar {
            bar.set_style(style(plan.steps));
            if let Some(steps) = plan.steps {
                bar.set_length(steps as u64);
            }
            bar.set_position(plan.done as u64);
            bar.reset_eta();
        }
        if plan.done > 0 {
            self.line(&format!("goes on after step {}", plan.done));
        }
        self.plan = Some(plan.clone());
    }

    fn step(&mut self, step: &Step) {
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(step.clone());
        if let Some(bar) = &self.bar {
            bar.set_message(self.status(step.epoch, step.loss));
            bar.set_position(step.step as u64);
        } else if self.last_line.elapsed() > QUIET {
            let steps = self.plan.as_ref().and_then(|plan| plan.steps);
            let of = steps.map(|steps| format!("/{steps}")).unwrap_or_default();
            let mut line = self.status(step.epoch, step.loss);
            line += &format!("  step {}{of}", step.step);
            if let Some(left) = steps.map(|steps| steps.saturating_sub(step.step)) {
                line += &format!("  {} left", time(left as f64 * self.seconds()));
            }
            self.line(&line);
        }
    }

    fn line(&mut self, line: &str) {
        self.last_line = Instant::now();
        match &self.bar {
            Some(bar) => bar.println(line),
            None => (self.write)(line),
        }
    }

    /// The median seconds of a step.
    fn seconds(&self) -> f64 {
        let seconds = self.recent.iter();
        let durations = seconds.map(|step| Duration::from_secs_f64(step.seconds));
        median(&durations.collect::<Vec<_>>()).as_secs_f64()
    }

    fn status(&self, epoch: usize, loss: f64) -> String {
        let epochs = self.plan.as_ref().and_then(|plan| plan.epochs);
        let of = epochs
            .map(|epochs| format!("/{epochs}"))
            .unwrap_or_default();
        let seconds = self.seconds();
        let mut status = format!(
            "epoch {:>2}{of}  loss {loss:.4}  {seconds:.3} s/step",
            epoch + 1
        );
        let unit = self.recent.last().map_or(Unit::Batches, |step| step.unit);
        if unit != Unit::Batches {
            let count: usize = self.recent.iter().map(|step| step.count).sum();
            let time: f64 = self.recent.iter().map(|step| step.seconds).sum();
            let rate = count as f64 / time.max(f64::MIN_POSITIVE);
            status += &format!("  {rate:.0} {}/s", unit.name());
        }
        status
    }
}

/// A bar, which needs a length; without one, the number of steps alone.
fn style(steps: Option<usize>) -> ProgressStyle {
    let colour = match std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        true => "",
        false => ":.cyan",
    };
    let style = match steps {
        Some(_) => format!("{{msg}}  {{wide_bar{colour}}} {{pos}}/{{len}} steps, {{eta}} left"),
        None => "{msg}  {pos} steps".into(),
    };
    // A bad template would only cost the looks.
    ProgressStyle::with_template(&style)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// A duration in hours, minutes and seconds.
fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn lines_tell_loss_speed_and_epoch() {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&lines);
        let mut progress = Progress::lines_to(move |line| to.borrow_mut().push(line.to_string()));
        progress.bar = None;
        let plan = Plan {
            steps: Some(20),
            epochs: Some(10),
            done: 4,
        };
        progress.tell(&Event::Begin(&plan));
        for step in 5..7 {
            progress.tell(&Event::Step(&Step {
                step,
                epoch: 2,
                loss: 0.5,
                lr: 1e-3,
                grad_norm: None,
                count: 100,
                unit: Unit::Tokens,
                seconds: 0.25,
            }));
        }
        let (epoch, loss) = (2, 0.75);
        progress.tell(&Event::Epoch { epoch, loss });
        let expected = [
            "goes on after step 4",
            "epoch  3/10  loss 0.7500  0.250 s/step  400 tokens/s",
        ];
        assert_eq!(*lines.borrow(), expected);
        assert_eq!(
            [59.9, 61.0, 7322.0].map(time),
            ["59 s", "1 min 1 s", "2 h 2 min"]
        );
    }
}
