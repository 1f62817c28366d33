//! [`Access`]: what keeps the inside of a layer to this crate.

/// Shows that this crate asks: only the crate makes one.
///
/// The methods that hand out the inside of a layer to be changed take it, so that a layer of any
/// crate can implement them and nobody else can take a layer apart.
#[derive(Clone, Copy, Debug)]
pub struct Access(());

impl Access {
    pub(crate) fn new() -> Self {
        Self(())
    }
}
