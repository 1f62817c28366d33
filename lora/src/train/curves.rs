//! The curves of a run as a picture: one panel below the other, in SVG.

use super::log::{Curve, curves};
use crate::file::stage;
use crate::{Error, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The picture's file in an output.
const CURVES: &str = "curves.svg";

const WIDTH: f64 = 720.0;
const PANEL: f64 = 200.0;
const LEFT: f64 = 70.0;
const MARGIN: f64 = 24.0;
/// Points a curve has at most: more would only fill the file.
const POINTS: usize = 1000;

/// Draws the curves of an output's log. `None` if there is nothing to draw.
pub(super) fn draw(output: &Path) -> Result<Option<PathBuf>> {
    let curves = curves(output)?;
    if curves.is_empty() {
        return Ok(None);
    }
    let path = output.join(CURVES);
    let failed = |error: String| Error::file(&path, format!("cannot be written: {error}"));
    let file = stage(output, svg(&curves).as_bytes());
    let file = file.map_err(|error| failed(error.to_string()))?;
    file.persist(&path)
        .map_err(|error| failed(error.to_string()))?;
    Ok(Some(path))
}

fn svg(curves: &[(String, Curve, Curve)]) -> String {
    let height = curves.len() as f64 * PANEL;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fafaf8\"/>\n"
    );
    for (index, (name, steps, evaluations)) in curves.iter().enumerate() {
        let panel = Panel::new(index as f64 * PANEL, steps, evaluations);
        panel.frame(&mut svg, name);
        panel.line(&mut svg, steps, "#2a6fb0", 1.0);
        panel.line(&mut svg, evaluations, "#c2410c", 2.0);
    }
    svg + "</svg>\n"
}

/// The place of a curve, and the ranges that it shows.
struct Panel {
    top: f64,
    steps: [f64; 2],
    values: [f64; 2],
}

impl Panel {
    fn new(top: f64, a: &Curve, b: &Curve) -> Self {
        let range = |of: fn(&(f64, f64)) -> f64| {
            let numbers = a.iter().chain(b).map(of);
            let (low, high) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            });
            match high > low {
                true => [low, high],
                false => [low - 0.5, low + 0.5],
            }
        };
        Self {
            top,
            steps: range(|point| point.0),
            values: range(|point| point.1),
        }
    }

    fn place(&self, (step, value): (f64, f64)) -> (f64, f64) {
        let share = |x: f64, [low, high]: [f64; 2]| (x - low) / (high - low);
        let x = LEFT + share(step, self.steps) * (WIDTH - LEFT - MARGIN);
        let y = self.top + PANEL - MARGIN - share(value, self.values) * (PANEL - 2.0 * MARGIN);
        (x, y)
    }

    fn frame(&self, svg: &mut String, name: &str) {
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        let (bottom, right) = (self.top + PANEL - MARGIN, WIDTH - MARGIN);
        let top = self.top + MARGIN;
        let [first, last] = self.steps;
        let [low, high] = self.values.map(number);
        // Writing into a string cannot fail.
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#999\"/>\n\
             <text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{name}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{high}</text>\n\
             <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">{low}</text>\n\
             <text x=\"{LEFT}\" y=\"{}\">step {first}</text>\n\
             <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{last}</text>",
            self.top + 16.0,
            LEFT - 6.0,
            top + 10.0,
            LEFT - 6.0,
            bottom + 14.0,
            bottom + 14.0,
        );
    }

    fn line(&self, svg: &mut String, curve: &Curve, colour: &str, width: f64) {
        let stride = curve.len().div_ceil(POINTS).max(1);
        // Each point is the mean of its neighbours, so that nothing is left out.
        let points = curve.chunks(stride).map(|points| {
            let count = points.len() as f64;
            let sum = points
                .iter()
                .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
            let (x, y) = self.place((sum.0 / count, sum.1 / count));
            format!("{x:.1},{y:.1}")
        });
        let points: Vec<String> = points.collect();
        if !points.is_empty() {
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"{}\"/>",
                points.join(" ")
            );
        }
    }
}

/// A number in few letters.
fn number(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_spans_its_panel() {
        let curves = [(
            "a<b".to_string(),
            vec![(1.0, 0.0), (3.0, 2.0)],
            vec![(2.0, 1.0)],
        )];
        let svg = svg(&curves);
        assert!(svg.contains("points=\"70.0,176.0 696.0,24.0\""), "{svg}");
        assert!(
            svg.contains("points=\"383.0,100.0\"") && svg.contains(">a&lt;b<"),
            "{svg}"
        );
    }
}
