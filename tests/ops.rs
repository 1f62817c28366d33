//! The ops against PyTorch, in every form that a tensor takes, and the graph that they make.

mod ops {
    mod errors;
    mod fixtures;
    mod graph;
    mod halves;
    mod threads;
    mod views;
}
