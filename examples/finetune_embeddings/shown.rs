//! A few queries, with what was found before and after.

use super::search::{Outcome, Search};
use crate::results::shorten;
use std::fmt::{self, Display, Formatter};

/// Letters of a text at most.
const LETTERS: usize = 84;

/// A few of the queries whose first document changed: two of three found theirs only after the training, the
/// others only before, as far as there are such.
pub(super) struct Shown<'a> {
    pub(super) search: &'a Search,
    pub(super) before: &'a Outcome,
    pub(super) after: &'a Outcome,
    pub(super) most: usize,
}

impl Shown<'_> {
    /// The queries with their right document in front after and not before, and the other way round.
    fn changed(&self) -> [Vec<usize>; 2] {
        let places = self.before.found.iter().zip(&self.after.found);
        let (mut better, mut worse) = (Vec::new(), Vec::new());
        for (query, (&(_, before), &(_, after))) in places.enumerate() {
            match (before, after) {
                (0, 1..) => worse.push(query),
                (1.., 0) => better.push(query),
                _ => {}
            }
        }
        [better, worse]
    }

    fn line(&self, f: &mut Formatter<'_>, when: &str, found: (usize, usize)) -> fmt::Result {
        let (document, place) = found;
        let text = shorten(&self.search.documents.texts[document], LETTERS);
        match place {
            0 => writeln!(f, "  {when:<8}+ {text}"),
            _ => writeln!(f, "  {when:<8}- {text}  (the right one: {})", place + 1),
        }
    }
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [better, worse] = self.changed();
        if self.most == 0 || self.before.found.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "{} queries found their document first only after the training, {} only before; + is right\n",
            better.len(),
            worse.len()
        )?;
        let few = worse.len().min(self.most / 3);
        let many = better.len().min(self.most - few);
        for &query in better[..many].iter().chain(&worse[..few]) {
            writeln!(f, "{}", shorten(&self.search.queries.texts[query], LETTERS))?;
            self.line(f, "before", self.before.found[query])?;
            self.line(f, "after", self.after.found[query])?;
        }
        Ok(())
    }
}
