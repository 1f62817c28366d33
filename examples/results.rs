//! How the programs print their results: a name and a value in each row.

use lora::train::Trained;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// Writes a row.
///
/// # Errors
/// Those of the formatter.
pub fn row(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:<20}{value}")
}

/// Writes the rows of a training: what was trained, whether its gradients are right, how fast it was.
///
/// # Errors
/// Those of the formatter.
pub fn training(
    f: &mut Formatter<'_>,
    trainable: usize,
    parameters: usize,
    trained: &Trained,
    tokens_a_second: Option<f64>,
) -> fmt::Result {
    let share = percent(trainable as f64 / parameters.max(1) as f64);
    row(f, "trainable share", format!("{share} of the parameters"))?;
    let Trained {
        gradients,
        steps,
        step,
        total,
        ..
    } = trained;
    if let Some(gradients) = gradients {
        let (layers, worst) = (gradients.layers, 100.0 * gradients.worst);
        let checked = format!("right at {layers} layers, to {worst:.2} % by differences");
        row(f, "gradients", checked)?;
    }
    let (step, total) = (step.as_secs_f64(), total.as_secs_f64());
    let times = format!("{step:.4} (median of {steps}), {total:.1} s in all");
    row(f, "seconds a step", times)?;
    match tokens_a_second {
        Some(tokens) => row(f, "tokens a second", thousands(tokens.round() as usize)),
        None => Ok(()),
    }
}

/// Writes where files are.
///
/// # Errors
/// Those of the formatter.
pub fn paths(f: &mut Formatter<'_>, paths: &[PathBuf]) -> fmt::Result {
    for (index, path) in paths.iter().enumerate() {
        let name = if index == 0 { "saved" } else { "" };
        row(f, name, path.display())?;
    }
    Ok(())
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A number with commas between its thousands.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in kB or MB.
pub fn size(bytes: u64) -> String {
    let kilobytes = bytes as f64 / 1000.0;
    if kilobytes < 1000.0 {
        format!("{kilobytes:.0} kB")
    } else {
        format!("{:.1} MB", kilobytes / 1000.0)
    }
}

/// The beginning of a text on one line, of at most so many characters.
pub fn shorten(text: &str, most: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    match line.char_indices().nth(most) {
        Some(_) => {
            let kept: String = line.chars().take(most.saturating_sub(2)).collect();
            format!("{}..", kept.trim_end())
        }
        None => line,
    }
}

/// The largest resident memory of this process so far, in bytes; only Linux tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_short_to_read() {
        let numbers = [0, 999, 1000, 54_321, 1_234_567].map(thousands);
        assert_eq!(numbers, ["0", "999", "1,000", "54,321", "1,234,567"]);
        assert_eq!([size(999), size(1_500_000)], ["1 kB", "1.5 MB"]);
        assert_eq!(shorten(" a\n\nb  c ", 5), "a b c");
        assert_eq!(shorten("äöü äöü", 6), "äöü..");
    }
}
