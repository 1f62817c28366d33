//! Tables of text, and how numbers stand in them.

/// A table: a head and rows, of which each column is as wide as its longest entry.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Numbers stand at the right of a column.
    right: Vec<bool>,
}

impl Table {
    /// With these heads. A column whose head begins with `>` holds numbers.
    pub fn new(heads: &[impl AsRef<str>]) -> Self {
        let right = heads.iter().map(|head| head.as_ref().starts_with('>'));
        let names = heads
            .iter()
            .map(|head| head.as_ref().trim_start_matches('>').to_string());
        Self {
            right: right.collect(),
            rows: vec![names.collect()],
        }
    }

    /// Without a head: a list of keys and values.
    pub fn list() -> Self {
        Self {
            rows: Vec::new(),
            right: vec![false, false],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    /// The lines, each behind this margin.
    pub fn lines(&self, margin: &str) -> Vec<String> {
        let width = |column: usize| {
            let entries = self.rows.iter().filter_map(|row| row.get(column));
            entries
                .map(|entry| entry.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let entries = row.iter().zip(&widths).zip(&self.right);
            let entries = entries.map(|((entry, &width), right)| match right {
                true => format!("{entry:>width$}"),
                false => format!("{entry:<width$}"),
            });
            let line = entries.collect::<Vec<_>>().join("  ");
            format!("{margin}{}", line.trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// A number with four digits that count.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() || !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let digits = (3 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// A number, or a dash where there is none.
pub fn optional(value: Option<f64>) -> String {
    value.map_or("-".into(), number)
}

/// A share in percent, or a dash.
pub fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{} %", number(100.0 * value)))
}

/// A whole number with a comma at each thousand.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes.
pub fn bytes(value: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut size, mut unit) = (value as f64, 0);
    while size >= 1000.0 && unit + 1 < units.len() {
        size /= 1000.0;
        unit += 1;
    }
    format!("{} {}", number(size), units[unit])
}

/// One thing, or several: `1 layer`, `3 layers`.
pub fn plural(number: usize, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{} {one}s", count(number as u64)),
    }
}

/// Rows and columns, or more dimensions: `576 × 192`.
pub fn shape(dims: &[usize]) -> String {
    match dims {
        [] => "a number".into(),
        dims => dims
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(" × "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.012345, "0.01235"),
            (123456.0, "123456"),
            (-2.5, "-2.5"),
            (1e-7, "1.00e-7"),
            (99.996, "100"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(count(1234567), "1,234,567");
        assert_eq!([bytes(999), bytes(12345)], ["999 B", "12.35 kB"]);
        assert_eq!(percent(Some(0.5)), "50 %");
    }

    #[test]
    fn columns_are_as_wide_as_their_entries() {
        let mut table = Table::new(&["name", ">size"]);
        table.row(["a".into(), "10".into()]);
        table.row(["longer".into(), "5".into()]);
        assert_eq!(
            table.lines(" "),
            [" name    size", " a         10", " longer     5"]
        );
    }
}
