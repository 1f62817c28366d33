//! The integration tests, in one program, as each further one costs a link with all of candle.
//!
//! A folder holds the tests of one theme. What looks at the whole process or changes it is a
//! program of its own, a file beside this one: memory, the instructions of kernels, being killed,
//! the network, the compiler.

mod convert;
mod data;
mod decoder;
mod derive;
mod encoder;
mod gguf;
mod gradients;
mod house;
mod images;
mod kinds;
mod layers;
mod losses;
mod matrix;
mod merge;
mod models;
mod ops;
mod optim;
mod peft;
mod properties;
mod quantised;
mod strict;
mod train;
mod vit;
