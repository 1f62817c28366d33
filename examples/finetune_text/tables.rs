//! Tables of predictions.

use super::evaluation::Evaluation;
use crate::results::{percent, shorten};
use anyhow::Result;
use lora::data::Labelled;
use lora::metrics::F1;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// More classes than these make a table too wide to read.
const MOST_CLASSES: usize = 10;
/// The most letters of a class's name.
const NAME: usize = 14;
/// The most letters of a text.
const TEXT: usize = 72;

/// How often texts of each class were predicted as each class, with each class's precision, recall and F1;
/// of many classes, the most frequent mistakes.
///
/// # Errors
/// If the lists differ in length.
pub fn confusion(predictions: &[u32], labels: &[u32], classes: &[String]) -> Result<String> {
    let mut counts = BTreeMap::<(u32, u32), usize>::new();
    for pair in labels.iter().copied().zip(predictions.iter().copied()) {
        *counts.entry(pair).or_default() += 1;
    }
    let name = |class: u32| shorten(&classes[class as usize], NAME);
    if classes.len() > MOST_CLASSES {
        let mut mistakes: Vec<_> = counts.iter().filter(|((is, as_), _)| is != as_).collect();
        mistakes.sort_by_key(|(_, count)| Reverse(**count));
        let line = |((is, taken), count): &(&(u32, u32), &usize)| {
            format!("{count:>6} of {} taken for {}\n", name(*is), name(*taken))
        };
        let lines: String = mistakes.iter().take(MOST_CLASSES).map(line).collect();
        return Ok(format!("most frequent mistakes\n{lines}"));
    }
    let all: Vec<u32> = (0..classes.len() as u32).collect();
    let mut table = format!("{:<NAME$}", "held out");
    for &class in &all {
        table.push_str(&format!(
            "{:>width$}",
            format!("as {}", name(class)),
            width = NAME + 4
        ));
    }
    table.push_str(&format!("{:>11}{:>9}{:>9}\n", "precision", "recall", "F1"));
    for &is in &all {
        table.push_str(&format!("{:<NAME$}", name(is)));
        for &taken in &all {
            let count = counts.get(&(is, taken)).copied().unwrap_or(0);
            table.push_str(&format!("{count:>width$}", width = NAME + 4));
        }
        let f1 = F1::of(predictions, labels, &is)?;
        table.push_str(&format!(
            "{:>11}{:>9}{:>9}\n",
            percent(f1.precision),
            percent(f1.recall),
            percent(f1.f1)
        ));
    }
    Ok(table)
}

/// Some texts with their classes and the predictions before and after: first those that are wrong after,
/// at most half of all, then those that the training put right, then any.
pub fn examples(
    items: &[Labelled],
    labels: &[u32],
    before: &Evaluation,
    after: &Evaluation,
    classes: &[String],
    count: usize,
) -> String {
    let all = 0..items.len();
    let is_right =
        |evaluation: &Evaluation, index: usize| evaluation.predictions[index] == labels[index];
    let mut order: Vec<usize> = all
        .clone()
        .filter(|&index| !is_right(after, index))
        .collect();
    order.truncate(count / 2);
    let learned = |&index: &usize| is_right(after, index) && !is_right(before, index);
    order.extend(all.clone().filter(learned));
    let known = |&index: &usize| is_right(after, index) && is_right(before, index);
    order.extend(all.filter(known));
    let name = |class: u32| shorten(&classes[class as usize], NAME);
    let mut table = format!(
        "{:<NAME$}  {:<NAME$}  {:<width$}  text\n",
        "class",
        "before",
        "after",
        width = NAME + 7
    );
    for &index in order.iter().take(count) {
        let item = &items[index];
        let [was, is] = [before, after].map(|evaluation| evaluation.predictions[index]);
        let sure = after.probabilities[index][is as usize];
        let is = format!("{} {}", name(is), percent(sure.into()));
        let text = match &item.text_pair {
            Some(pair) => format!("{} | {pair}", item.text),
            None => item.text.clone(),
        };
        table.push_str(&format!(
            "{:<NAME$}  {:<NAME$}  {is:<width$}  {}\n",
            name(labels[index]),
            name(was),
            shorten(&text, TEXT),
            width = NAME + 7
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_what_was_taken_for_what() -> Result<()> {
        let classes = ["ham".to_string(), "spam".to_string()];
        let table = confusion(&[1, 0, 1, 1], &[1, 0, 0, 1], &classes)?;
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            [
                "held",
                "out",
                "as",
                "ham",
                "as",
                "spam",
                "precision",
                "recall",
                "F1"
            ]
        );
        assert_eq!(
            lines[1],
            ["ham", "1", "1", "100.0", "%", "50.0", "%", "66.7", "%"]
        );
        assert_eq!(
            lines[2],
            ["spam", "0", "2", "66.7", "%", "100.0", "%", "80.0", "%"]
        );
        let classes: Vec<String> = (0..11).map(|class| class.to_string()).collect();
        let table = confusion(&[1, 2, 2], &[0, 0, 0], &classes)?;
        let expected = "most frequent mistakes\n     2 of 0 taken for 2\n     1 of 0 taken for 1\n";
        assert_eq!(table, expected);
        Ok(())
    }
}
