//! Texts that end a sequence.

/// Lets text through up to a stop string, and holds back what could become one.
pub(super) struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    pub(super) fn new(strings: &[String]) -> Self {
        Self {
            strings: strings.to_vec(),
            held: String::new(),
        }
    }

    /// Takes text, and gives what is sure to stand before a stop string; and whether one was found.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.strings.iter().filter_map(|stop| self.held.find(stop));
        if let Some(place) = found.min() {
            self.held.truncate(place);
            return (std::mem::take(&mut self.held), true);
        }
        let ends = self.held.char_indices().map(|(place, _)| place);
        let could_stop = |&place: &usize| {
            let end = &self.held[place..];
            self.strings.iter().any(|stop| stop.starts_with(end))
        };
        let sure = ends.clone().find(could_stop).unwrap_or(self.held.len());
        let rest = self.held.split_off(sure);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more text comes.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    #[test]
    fn what_could_become_a_stop_string_is_held_back() {
        let mut stops = Stops::new(&["###".into(), "\n\nUser".into()]);
        for (text, expected, stopped) in [
            ("a#", "a", false),
            ("#b", "##b", false),
            ("\n", "", false),
            ("\n\n", "\n", false),
            ("Use", "", false),
            ("x##", "\n\nUsex", false),
            ("#tail", "", true),
        ] {
            assert_eq!(stops.push(text), (expected.into(), stopped), "{text:?}");
        }
        let mut stops = Stops::new(&["ab".into()]);
        assert_eq!(stops.push("xa"), ("x".into(), false));
        assert_eq!(stops.rest(), "a");
    }

    /// The one that begins first ends the text, whichever is longer.
    #[test]
    fn the_first_stop_string_ends_the_text() {
        let mut stops = Stops::new(&["cd".into(), "bcd".into()]);
        assert_eq!(stops.push("abcd"), ("a".into(), true));
    }
}
