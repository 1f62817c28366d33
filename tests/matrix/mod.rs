//! What PEFT computes, kind by kind and feature by feature, against numbers that PEFT made.
//!
//! Each group is a test of its own. A case of a group that fails does not stop the others: the
//! failure lists them all.

mod api;
mod cases;
mod combinations;
mod curves;
mod forms;
mod layers;
mod lifecycle;
pub(crate) mod twins;
