//! The classes of labelled texts.

use super::records::Label;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashSet};

/// The classes that labels name, each with a number: of names in alphabetical order, of numbers the number
/// itself.
///
/// ```
/// use lora::data::{Classes, Label};
///
/// let [spam, ham] = ["spam", "ham"].map(|name| Label::Name(name.into()));
/// let classes = Classes::of([&spam, &ham, &spam])?;
/// assert_eq!(classes.names(), ["ham", "spam"]);
/// assert_eq!(classes.number(&spam), Some(1));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// As the labels have them, by number.
    keys: Vec<String>,
    /// As they are called.
    names: Vec<String>,
}

impl Classes {
    /// The classes of these labels.
    ///
    /// # Errors
    /// [`Error::Data`] if some labels are names and others numbers, a number is none of a class, or all
    /// labels are of one class.
    pub fn of<'a>(labels: impl IntoIterator<Item = &'a Label>) -> Result<Self> {
        let labels: Vec<&Label> = labels.into_iter().collect();
        Self::read(&labels).map_err(|problem| Error::Data(vec![problem]))
    }

    fn read(labels: &[&Label]) -> Result<Self, String> {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (index, label) in labels.iter().enumerate() {
            let number = index + 1;
            match label {
                Label::Name(name) => drop(names.insert(name.as_str())),
                Label::Class(class) if (*class as usize) < labels.len() => {
                    numbers.insert(*class);
                }
                Label::Class(class) => {
                    return Err(format!(
                        "the label of text {number} is {class}, and classes are numbered from 0, fewer than texts"
                    ));
                }
                Label::Number(label) => {
                    return Err(format!(
                        "the label of text {number} is {label}: a class has a name or a whole number"
                    ));
                }
            }
        }
        if !names.is_empty() && !numbers.is_empty() {
            return Err("some labels are names and others are numbers: make all the same".into());
        }
        if names.len().max(numbers.len()) < 2 {
            return Err("all labels are of one class: at least two are needed".into());
        }
        let keys: Vec<String> = match numbers.last() {
            Some(last) => (0..=*last).map(|class| class.to_string()).collect(),
            None => names.iter().map(|name| name.to_string()).collect(),
        };
        Ok(Self {
            names: keys.clone(),
            keys,
        })
    }

    /// The names, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a label's class.
    pub fn number(&self, label: &Label) -> Option<u32> {
        let key = match label {
            Label::Name(name) => name.clone(),
            Label::Class(number) => number.to_string(),
            Label::Number(_) => return None,
        };
        let place = self.keys.iter().position(|known| *known == key)?;
        u32::try_from(place).ok()
    }

    /// The number of a label's class.
    ///
    /// # Errors
    /// [`Error::Data`] names a label that is none of these classes.
    #[cfg(feature = "text")]
    pub(crate) fn numbered(&self, label: &Label) -> Result<u32> {
        self.number(label).ok_or_else(|| {
            let names = crate::error::shorten(&self.names.join(", "));
            Error::Data(vec![format!("the label {label} is none of {names}")])
        })
    }

    /// The same classes with the numbers that a model has for their names, in whatever case. `None` if the
    /// model's classes are others.
    pub fn numbered_as(&self, labels: &[String]) -> Option<Self> {
        let key = |label: &String| {
            let names = self.names.iter().zip(&self.keys);
            let mut found = names.filter(|(name, _)| name.eq_ignore_ascii_case(label));
            found.next().map(|(_, key)| key.clone())
        };
        let keys: Vec<String> = labels.iter().map(key).collect::<Option<_>>()?;
        let distinct: HashSet<&String> = keys.iter().collect();
        let same = keys.len() == self.keys.len() && distinct.len() == keys.len();
        same.then(|| Self {
            keys,
            names: labels.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Label {
        Label::Name(name.into())
    }

    #[test]
    fn labels_are_names_or_numbers() {
        let classes = |labels: &[Label]| Classes::of(labels);
        let error = |labels: &[Label]| classes(labels).unwrap_err().to_string();
        let found = classes(&[Label::Class(0), Label::Class(2), Label::Class(2)]).unwrap();
        assert_eq!(found.names(), ["0", "1", "2"]);
        assert_eq!(found.number(&Label::Class(2)), Some(2));
        assert_eq!(found.number(&Label::Class(3)), None);
        assert_eq!(
            error(&[name("a"), Label::Class(0)]),
            "the data: some labels are names and others are numbers: make all the same"
        );
        assert_eq!(
            error(&[Label::Number(0.5)]),
            "the data: the label of text 1 is 0.5: a class has a name or a whole number"
        );
        assert_eq!(
            error(&[Label::Class(7)]),
            "the data: the label of text 1 is 7, and classes are numbered from 0, fewer than texts"
        );
        assert_eq!(
            error(&[name("a"), name("a")]),
            "the data: all labels are of one class: at least two are needed"
        );
    }

    #[test]
    fn classes_take_the_models_numbers() {
        let classes = Classes::of(&[name("negative"), name("positive")]).unwrap();
        let labels = |labels: [&str; 2]| labels.map(String::from);
        assert_eq!(classes.numbered_as(&labels(["LABEL_0", "LABEL_1"])), None);
        let own = classes
            .numbered_as(&labels(["POSITIVE", "NEGATIVE"]))
            .unwrap();
        assert_eq!(own.number(&name("negative")), Some(1));
        assert_eq!(own.names(), ["POSITIVE", "NEGATIVE"]);
    }
}
