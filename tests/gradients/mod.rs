//! Gradients are right, or an error says which are not: what the copy of a forward pass calls, the
//! numerical check, parts that a batch does not reach, caches.

mod cache;
mod check;
mod cuts;
mod methods;
mod routed;
mod spellings;
