//! The dotted path of the module that a walk has reached.

/// A dotted path that grows and shrinks as a walk goes down and up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path(String);

impl Path {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Adds a segment, unless it is empty. [`truncate`](Self::truncate) with the returned length takes
    /// the segment off.
    pub(crate) fn push(&mut self, segment: &str) -> usize {
        let length = self.0.len();
        if !self.0.is_empty() && !segment.is_empty() {
            self.0.push('.');
        }
        self.0.push_str(segment);
        length
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
}

/// `path.name`; only one of the two where the other is empty.
pub(crate) fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.into(),
        (_, true) => path.into(),
        _ => format!("{path}.{name}"),
    }
}
