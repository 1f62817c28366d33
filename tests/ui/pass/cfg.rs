//! Fields, variants and methods with conditions.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_nn::Linear;
use lora::LoraModel;

/// A struct.
#[derive(LoraModel)]
pub struct Net {
    #[cfg(all())]
    #[lora(rank)]
    fc: Linear,
    #[cfg(any())]
    gone: Missing,
    #[cfg_attr(all(), lora(skip))]
    skipped: [[u8; 2]; 2],
}

/// An enum.
#[derive(LoraModel)]
pub enum Either {
    /// There.
    #[cfg(all())]
    This(Linear),
    /// Not there.
    #[cfg(any())]
    That(Missing),
}

#[lora::forward]
impl Net {
    /// There.
    #[cfg(all())]
    pub fn there(&self) -> u8 {
        self.skipped[0][0]
    }

    /// Not there.
    #[cfg(any())]
    pub fn gone(&self) -> Missing {}
}

pub fn main() {
    let _: fn(&LoraNet) -> u8 = LoraNet::there;
}
