//! Where the time of a step goes, by op.
//!
//! [`record`] runs a closure. For each op of [`ops`](crate::ops) and for each of its two passes, it
//! reports how often the op ran, how long it took and how large the tensors are that it made. A
//! recording covers the thread that calls it, with all the threads that an op computes on. The
//! backward pass runs on the thread that starts it. While nothing is recorded, an op pays one
//! atomic load.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use lora::profile::{self, Pass};
//!
//! let x = Var::zeros((4, 8), DType::F32, &Device::Cpu)?;
//! let w = Tensor::zeros((16, 8), DType::F32, &Device::Cpu)?;
//! let (grads, report) = profile::record(|| {
//!     let y = lora::ops::linear(&x, &w, None)?;
//!     lora::ops::silu(&y)?.sum_all()?.backward()
//! });
//! assert!(grads?.get(&x).is_some());
//!
//! println!("{report}"); // a table, the slowest op first
//! assert_eq!(report.rows.len(), 4); // two ops, two passes
//! let linear = report.row("linear", Pass::Forward).unwrap();
//! assert_eq!((linear.calls, linear.bytes), (1, 4 * 16 * 4));
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! On a GPU an op returns before its work is done: there the times are those of starting the work.

use candle_core::Tensor;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Runs the closure and reports on the ops that it ran on this thread.
///
/// Recordings nest: an outer one counts what an inner one counts too.
pub fn record<T>(run: impl FnOnce() -> T) -> (T, Report) {
    /// Closes the recording, even if the closure panics.
    struct Open;

    impl Drop for Open {
        fn drop(&mut self) {
            RECORDING.fetch_sub(1, Ordering::Relaxed);
            STATE.with_borrow_mut(|state| state.recordings.pop());
        }
    }

    RECORDING.fetch_add(1, Ordering::Relaxed);
    STATE.with_borrow_mut(|state| state.recordings.push(Totals::new()));
    let open = Open;
    let start = Instant::now();
    let value = run();
    let whole = start.elapsed();
    let totals = STATE.with_borrow_mut(|state| state.recordings.last_mut().map(std::mem::take));
    drop(open);
    (value, Report::new(whole, totals.unwrap_or_default()))
}

/// The result of [`record`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Duration of the whole, in seconds.
    pub seconds: f64,
    /// The part that no op accounts for, in seconds: candle's own operations, the optimiser, the
    /// program itself.
    pub elsewhere: f64,
    /// One row for each op and pass, the slowest first.
    pub rows: Vec<Row>,
}

/// One op in one pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Name of the op.
    pub op: &'static str,
    /// The pass.
    pub pass: Pass,
    /// How often it ran.
    pub calls: usize,
    /// Self time of all calls, in seconds: nested ops are not counted.
    pub seconds: f64,
    /// The self time as a share of the whole duration, from 0 to 1.
    pub share: f64,
    /// Size of the tensors that all calls have made, in bytes.
    pub bytes: usize,
}

/// One of the two passes of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Computes the op's value.
    Forward,
    /// Computes the gradients of the op's arguments from the gradient of its value.
    Backward,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

impl Report {
    fn new(whole: Duration, totals: Totals) -> Self {
        let seconds = whole.as_secs_f64();
        let share = |time: f64| if seconds > 0.0 { time / seconds } else { 0.0 };
        let rows = totals.into_iter().map(|((op, pass), total)| Row {
            op,
            pass,
            calls: total.calls,
            seconds: total.time.as_secs_f64(),
            share: share(total.time.as_secs_f64()),
            bytes: total.bytes,
        });
        let mut rows: Vec<Row> = rows.collect();
        rows.sort_by(|a, b| {
            let names = (a.op, a.pass).cmp(&(b.op, b.pass));
            b.seconds.total_cmp(&a.seconds).then(names)
        });
        let inside: f64 = rows.iter().map(|row| row.seconds).sum();
        Self {
            seconds,
            elsewhere: (seconds - inside).max(0.0),
            rows,
        }
    }

    /// The row of an op in one pass, if it ran.
    pub fn row(&self, op: &str, pass: Pass) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.op == op && row.pass == pass)
    }
}

/// A table of all rows, then the time elsewhere and the total.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds: f64| format!("{:.2}", seconds * 1e3);
        let megabytes = |bytes: usize| format!("{:.1}", bytes as f64 / 1e6);
        let percent = |seconds: f64| match self.seconds {
            whole if whole > 0.0 => format!("{:.1}", 100.0 * seconds / whole),
            _ => String::new(),
        };
        let header = ["op", "pass", "calls", "ms", "%", "MB made"];
        let mut table = vec![header.map(String::from)];
        table.extend(self.rows.iter().map(|row| {
            [
                row.op.into(),
                row.pass.name().into(),
                row.calls.to_string(),
                time(row.seconds),
                percent(row.seconds),
                megabytes(row.bytes),
            ]
        }));
        let (calls, bytes) = self.rows.iter().fold((0, 0), |(calls, bytes), row| {
            (calls + row.calls, bytes + row.bytes)
        });
        let rest = |name: &str, calls: String, seconds: f64, bytes: String| {
            let (time, share) = (time(seconds), percent(seconds));
            [name.into(), String::new(), calls, time, share, bytes]
        };
        table.push(rest(
            "elsewhere",
            String::new(),
            self.elsewhere,
            String::new(),
        ));
        let (calls, bytes) = (calls.to_string(), megabytes(bytes));
        table.push(rest("total", calls, self.seconds, bytes));

        let mut widths = [0; 6];
        for row in &table {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.len());
            }
        }
        for (index, [op, pass, calls, time, share, bytes]) in table.iter().enumerate() {
            let [w0, w1, w2, w3, w4, w5] = widths;
            if index > 0 {
                writeln!(f)?;
            }
            let line = format!(
                "{op:w0$}  {pass:w1$}  {calls:>w2$}  {time:>w3$}  {share:>w4$}  {bytes:>w5$}"
            );
            write!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// How many recordings are open, on all threads: all that an op reads while nothing is recorded.
static RECORDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static STATE: RefCell<Recording> = RefCell::default();
}

type Totals = HashMap<(&'static str, Pass), Total>;

#[derive(Default)]
struct Recording {
    /// The open recordings of this thread.
    recordings: Vec<Totals>,
    /// For each open span, the time of the spans that it has enclosed so far.
    enclosed: Vec<Duration>,
}

#[derive(Default)]
struct Total {
    calls: usize,
    time: Duration,
    bytes: usize,
}

/// Measures the time of one op in one pass, until it is dropped.
#[must_use]
pub(crate) struct Span(Option<Running>);

struct Running {
    op: &'static str,
    pass: Pass,
    start: Instant,
    bytes: usize,
}

impl Span {
    #[inline]
    fn start(op: &'static str, pass: Pass) -> Self {
        match RECORDING.load(Ordering::Relaxed) {
            0 => Self(None),
            _ => Self::recorded(op, pass),
        }
    }

    #[cold]
    fn recorded(op: &'static str, pass: Pass) -> Self {
        let running = STATE.with_borrow_mut(|state| {
            // Another thread records, not this one.
            if state.recordings.is_empty() {
                return None;
            }
            state.enclosed.push(Duration::ZERO);
            let (start, bytes) = (Instant::now(), 0);
            Some(Running {
                op,
                pass,
                start,
                bytes,
            })
        });
        Self(running)
    }

    /// Ends the span, with what the op made.
    pub(crate) fn end<'a>(mut self, made: impl Iterator<Item = &'a Tensor>) {
        if let Some(running) = &mut self.0 {
            let bytes = made.map(|made| made.elem_count() * made.dtype().size_in_bytes());
            running.bytes = bytes.sum();
        }
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.finish();
        }
    }
}

impl Running {
    #[cold]
    fn finish(self) {
        let time = self.start.elapsed();
        STATE.with_borrow_mut(|state| {
            let own = time.saturating_sub(state.enclosed.pop().unwrap_or_default());
            if let Some(outer) = state.enclosed.last_mut() {
                *outer += time;
            }
            for totals in &mut state.recordings {
                let total = totals.entry((self.op, self.pass)).or_default();
                total.calls += 1;
                total.time += own;
                total.bytes += self.bytes;
            }
        });
    }
}

#[inline]
pub(crate) fn forward(op: &'static str) -> Span {
    Span::start(op, Pass::Forward)
}

#[inline]
pub(crate) fn backward(op: &'static str) -> Span {
    Span::start(op, Pass::Backward)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Result};
    use std::thread::sleep;

    const MS: Duration = Duration::from_millis(1);

    fn keys(report: &Report) -> Vec<(&str, Pass, usize, usize)> {
        let rows = report.rows.iter();
        let mut keys: Vec<_> = rows.map(|r| (r.op, r.pass, r.calls, r.bytes)).collect();
        keys.sort();
        keys
    }

    #[test]
    fn counts_calls_bytes_and_own_time() -> Result<()> {
        let made = Tensor::zeros((2, 3), DType::F64, &Device::Cpu)?;
        let ((), report) = record(|| {
            let outer = backward("outer");
            sleep(5 * MS);
            for _ in 0..2 {
                let inner = forward("inner");
                sleep(10 * MS);
                inner.end([&made, &made].into_iter());
            }
            outer.end([&made].into_iter());
            sleep(3 * MS);
        });
        let expected = [
            ("inner", Pass::Forward, 2, 192),
            ("outer", Pass::Backward, 1, 48),
        ];
        assert_eq!(keys(&report), expected);
        let (inner, outer) = (&report.rows[0], &report.rows[1]);
        assert_eq!((inner.op, outer.op), ("inner", "outer"));
        assert!(inner.seconds >= 0.020 && outer.seconds >= 0.005);
        assert!(report.elsewhere >= 0.003);
        // Each moment belongs to one row.
        let sum = inner.seconds + outer.seconds + report.elsewhere;
        assert!((sum - report.seconds).abs() < 1e-6, "{report:?}");
        assert!((inner.share - inner.seconds / report.seconds).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn a_span_that_is_not_ended_is_counted_when_it_goes() {
        let ((), report) = record(|| {
            drop(forward("failed"));
            drop(forward("next"));
        });
        let row = |op| (op, Pass::Forward, 1, 0);
        assert_eq!(keys(&report), [row("failed"), row("next")]);
    }

    #[test]
    fn nothing_is_recorded_outside_or_on_another_thread() {
        drop(forward("before"));
        let ((), report) = record(|| {
            let other = std::thread::spawn(|| drop(forward("other")));
            other.join().unwrap();
        });
        drop(forward("after"));
        assert_eq!(report.rows, []);
        assert_eq!(report.elsewhere, report.seconds);
    }

    #[test]
    fn recordings_nest() {
        let (inner, outer) = record(|| {
            drop(forward("first"));
            record(|| drop(forward("second"))).1
        });
        let row = |op| (op, Pass::Forward, 1, 0);
        assert_eq!(keys(&inner), [row("second")]);
        assert_eq!(keys(&outer), [row("first"), row("second")]);
    }

    #[test]
    fn a_panic_closes_its_recording() {
        let panicked = std::panic::catch_unwind(|| record(|| panic!("as it should")));
        assert!(panicked.is_err());
        STATE.with_borrow(|state| assert!(state.recordings.is_empty()));
        assert_eq!(record(|| drop(forward("op"))).1.rows.len(), 1);
    }

    #[test]
    fn prints_a_table() {
        let total = |calls, ms, bytes| Total {
            calls,
            time: Duration::from_millis(ms),
            bytes,
        };
        let totals = Totals::from([
            (("silu", Pass::Forward), total(1, 25, 1_000_000)),
            (("linear", Pass::Backward), total(12, 600, 23_450_000)),
        ]);
        let report = Report::new(Duration::from_secs(1), totals);
        let table = "\
op         pass      calls       ms      %  MB made
linear     backward     12   600.00   60.0     23.4
silu       forward       1    25.00    2.5      1.0
elsewhere                    375.00   37.5
total                   13  1000.00  100.0     24.4";
        assert_eq!(report.to_string(), table);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["pass"], "backward");
        assert_eq!(json["rows"][1]["bytes"], 1_000_000);
        assert_eq!(json["elsewhere"], 0.375);
    }
}
