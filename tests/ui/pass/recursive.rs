//! Types that hold themselves, directly and by way of others.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]

use candle_nn::Linear;
use lora::LoraModel;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Holds itself in each way.
#[derive(LoraModel)]
pub struct Tree {
    #[lora(rank)]
    value: Linear,
    named: HashMap<String, Tree>,
    sorted: BTreeMap<usize, Tree>,
    shared: Arc<Vec<Option<Tree>>>,
    children: Vec<(Tree, Tree)>,
    next: Option<Box<Tree>>,
}

/// Holds `Odd`.
#[derive(LoraModel)]
pub struct Even {
    odd: Option<Box<Odd>>,
}

/// Holds `Even`.
#[derive(LoraModel)]
pub enum Odd {
    /// By name.
    More(Even),
    /// Or as an alias.
    Alias(Link),
    /// Not at all.
    Last(#[lora(rank)] Linear),
}

type Link = Option<Box<Even>>;

/// With a parameter.
#[derive(LoraModel)]
pub struct Chain<T>(T, Option<Box<Chain<T>>>);

pub fn main() {
    fn convertible<M: LoraModel>() {}
    convertible::<Tree>();
    convertible::<Even>();
    convertible::<Odd>();
    convertible::<Chain<Tree>>();
}
