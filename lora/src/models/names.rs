//! Names that are close to a mistaken one.

/// The closest names, the best first. Close are the names with the fewest letters changed, and
/// those that contain the mistaken name.
pub(super) fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> =
        names.map(|known| (distance(name, known), known)).collect();
    let best = scored.iter().map(|&(distance, _)| distance).min();
    let enough = best.map_or(0, |best| (best + 1).min(3));
    scored.retain(|&(distance, known)| {
        distance <= enough || (name.len() > 3 && known.contains(name))
    });
    scored.sort_by_key(|&(distance, _)| distance);
    scored.truncate(5);
    scored.into_iter().map(|(_, name)| name.into()).collect()
}

/// How many letters must be put in, taken out or changed to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, near};

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits);
            assert_eq!(distance(b, a), edits);
        }
    }

    #[test]
    fn near_names_are_few_and_sorted() {
        let names = || crate::models::list().into_iter();
        assert_eq!(near("convnext_tny", names()), ["convnext_tiny"]);
        assert_eq!(near("huge", names()), ["convnextv2_huge"]);
        assert!(near("resnet50", names()).is_empty());
        assert_eq!(near("convnext", names()).len(), 5);
    }
}
