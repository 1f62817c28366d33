//! What PEFT computes, kind by kind and feature by feature, against numbers that PEFT made.
//!
//! Each group is a test of its own. A case of a group that fails does not stop the others: the
//! failure lists them all.

#[macro_use]
#[path = "peft/models.rs"]
#[allow(dead_code)]
mod models;

#[path = "matrix/api.rs"]
mod api;
#[path = "matrix/cases.rs"]
mod cases;
#[path = "matrix/combinations.rs"]
mod combinations;
#[path = "matrix/curves.rs"]
mod curves;
#[path = "matrix/forms.rs"]
mod forms;
#[path = "matrix/layers.rs"]
mod layers;
#[path = "matrix/lifecycle.rs"]
mod lifecycle;
#[path = "peft/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "matrix/twins.rs"]
mod twins;
