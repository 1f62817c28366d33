//! Tuples as fields, whose parts have attributes of their own.

use crate::path::join;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::{BuildHasher, Hash};
use std::rc::Rc;
use std::sync::Arc;

/// A tuple, or a container of tuples: a field's type where attributes are on parts, as in
/// `#[lora(0(rank), 1(skip))]`.
#[diagnostic::on_unimplemented(
    message = "the parts of tuples in `{Self}` take no attributes",
    label = "neither a tuple nor a container of tuples",
    note = "tuples of up to six parts, and `Vec`, `Option`, `Box`, `Arc`, `Rc`, arrays and maps of tuples, take attributes for parts",
    note = "for anything else make the tuple a struct that derives `LoraModel`"
)]
pub trait Tuples {
    /// The tuple.
    type Tuple;

    /// The same container with another tuple.
    type With<L>;

    /// Makes a value of each tuple, which `make` gets with the tuple's path below `path`.
    ///
    /// # Errors
    /// Those of `make`.
    fn map<L>(&self, path: &str, make: Make<'_, Self::Tuple, L>) -> Result<Self::With<L>>;

    /// Calls `change` with each tuple and its path below `path`.
    fn each_mut(&mut self, path: &str, change: Change<'_, Self::Tuple>);
}

type Make<'a, T, L> = &'a mut dyn FnMut(&str, &T) -> Result<L>;

type Change<'a, T> = &'a mut dyn FnMut(&str, &mut T);

macro_rules! tuples {
    ($(($($name:ident),*))*) => {$(
        impl<$($name),*> Tuples for ($($name,)*) {
            type Tuple = Self;
            type With<L> = L;

            fn map<L>(&self, path: &str, make: Make<'_, Self, L>) -> Result<L> {
                make(path, self)
            }

            fn each_mut(&mut self, path: &str, change: Change<'_, Self>) {
                change(path, self);
            }
        }
    )*};
}

tuples!((A)(A, B)(A, B, C)(A, B, C, D)(A, B, C, D, E)(
    A, B, C, D, E, F
));

/// Each item adds its index to the path.
impl<T: Tuples> Tuples for Vec<T> {
    type Tuple = T::Tuple;
    type With<L> = Vec<T::With<L>>;

    fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
        let items = self.iter().enumerate();
        let items = items.map(|(i, item)| item.map(&join(path, &i.to_string()), make));
        items.collect()
    }

    fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
        for (i, item) in self.iter_mut().enumerate() {
            item.each_mut(&join(path, &i.to_string()), change);
        }
    }
}

/// Each item adds its index to the path.
impl<T: Tuples, const N: usize> Tuples for [T; N] {
    type Tuple = T::Tuple;
    type With<L> = [T::With<L>; N];

    fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
        let items = self.iter().enumerate();
        let items = items.map(|(i, item)| item.map(&join(path, &i.to_string()), make));
        array(items.collect::<Result<_>>()?)
    }

    fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
        for (i, item) in self.iter_mut().enumerate() {
            item.each_mut(&join(path, &i.to_string()), change);
        }
    }
}

pub(crate) fn array<T, const N: usize>(items: Vec<T>) -> Result<[T; N]> {
    let items = <[T; N]>::try_from(items);
    items.map_err(|items| Error::layer("", format!("{} items for an array of {N}", items.len())))
}

/// Adds nothing to the path.
impl<T: Tuples> Tuples for Option<T> {
    type Tuple = T::Tuple;
    type With<L> = Option<T::With<L>>;

    fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
        let inner = self.as_ref();
        inner.map(|inner| inner.map(path, make)).transpose()
    }

    fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
        if let Some(inner) = self {
            inner.each_mut(path, change);
        }
    }
}

/// Adds nothing to the path.
impl<T: Tuples> Tuples for Box<T> {
    type Tuple = T::Tuple;
    type With<L> = Box<T::With<L>>;

    fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
        T::map(self, path, make).map(Box::new)
    }

    fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
        T::each_mut(self, path, change);
    }
}

macro_rules! shared {
    ($shared:ident) => {
        /// Adds nothing to the path.
        impl<T: Tuples + Clone> Tuples for $shared<T> {
            type Tuple = T::Tuple;
            type With<L> = $shared<T::With<L>>;

            fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
                T::map(self, path, make).map($shared::new)
            }

            fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
                $shared::make_mut(self).each_mut(path, change);
            }
        }
    };
}

shared!(Arc);
shared!(Rc);

macro_rules! map {
    ($map:ident<$key:ident: $($bound:path),* $(; $hasher:ident: $($hash:path),*)?>) => {
        /// Each value adds its key to the path. The walk goes by sorted keys.
        impl<$key, T, $($hasher)?> Tuples for $map<$key, T, $($hasher)?>
        where
            $key: Display + Clone $(+ $bound)*,
            T: Tuples,
            $($hasher: Default $(+ $hash)*,)?
        {
            type Tuple = T::Tuple;
            type With<L> = $map<$key, T::With<L>, $($hasher)?>;

            fn map<L>(&self, path: &str, make: Make<'_, T::Tuple, L>) -> Result<Self::With<L>> {
                let items = sorted(self.iter()).into_iter();
                let items = items.map(|(key, item)| {
                    Ok((key.clone(), item.map(&join(path, &key.to_string()), make)?))
                });
                items.collect()
            }

            fn each_mut(&mut self, path: &str, change: Change<'_, T::Tuple>) {
                for (key, item) in sorted(self.iter_mut()) {
                    item.each_mut(&join(path, &key.to_string()), change);
                }
            }
        }
    };
}

map!(BTreeMap<K: Ord>);
map!(HashMap<K: Ord, Hash; S: BuildHasher>);

/// By key, so that the order of parameters is the same in every run.
pub(crate) fn sorted<K: Ord, V>(items: impl Iterator<Item = (K, V)>) -> Vec<(K, V)> {
    let mut items: Vec<_> = items.collect();
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    items
}
