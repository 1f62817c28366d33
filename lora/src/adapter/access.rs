//! [`Access`]: keeps changes to the inside of a layer to this crate.

/// Proof that this crate calls: no other crate can make an `Access`.
///
/// The methods that hand out the inside of a layer to be changed take an `Access`. So any crate can
/// implement these methods for a layer, but only this crate can call them.
#[derive(Clone, Copy, Debug)]
pub struct Access(());

impl Access {
    pub(crate) fn new() -> Self {
        Self(())
    }
}
