//! Containers of models are models: `Vec`, arrays, `Option`, `Box`, `Arc`, `Rc`, tuples, maps.

use crate::error::warn;
use crate::traits::{array, sorted};
use crate::{Builder, Cursor, CursorMut, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Display};
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

/// Each item adds its index to the path.
impl<M: LoraModel> LoraModel for Vec<M> {
    type Lora = Vec<M::Lora>;
    const IS_LAYER: bool = M::IS_LAYER;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
        let items = self.iter().enumerate();
        items
            .map(|(i, item)| cx.field(&i.to_string(), item))
            .collect()
    }
}

impl<M: LoraModule> LoraModule for Vec<M> {
    type Base = Vec<M::Base>;

    fn to_base(&self) -> Result<Self::Base> {
        self.iter().map(M::to_base).collect()
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        for (i, item) in self.iter().enumerate() {
            cursor.field(&i.to_string(), item);
        }
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        for (i, item) in self.iter_mut().enumerate() {
            cursor.field(&i.to_string(), item);
        }
    }
}

impl<M: LoraLayer> LoraLayer for Vec<M> {}

/// Each item adds its index to the path.
impl<M: LoraModel, const N: usize> LoraModel for [M; N] {
    type Lora = [M::Lora; N];
    const IS_LAYER: bool = M::IS_LAYER;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
        let items = self.iter().enumerate();
        let items = items.map(|(i, item)| cx.field(&i.to_string(), item));
        array(items.collect::<Result<_>>()?)
    }
}

impl<M: LoraModule, const N: usize> LoraModule for [M; N] {
    type Base = [M::Base; N];

    fn to_base(&self) -> Result<Self::Base> {
        array(self.iter().map(M::to_base).collect::<Result<_>>()?)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        for (i, item) in self.iter().enumerate() {
            cursor.field(&i.to_string(), item);
        }
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        for (i, item) in self.iter_mut().enumerate() {
            cursor.field(&i.to_string(), item);
        }
    }
}

impl<M: LoraLayer, const N: usize> LoraLayer for [M; N] {}

/// Adds nothing to the path.
///
/// `Option<(Tensor, Tensor)>` with tensors of three dimensions and more is a cache of keys and values,
/// as models keep it: state, not parameters. The value is cloned, and no walk lists, counts, moves or
/// saves it. A conversion that finds such a cache filled says so in a warning, in case that the tensors
/// are weights. Two matrices are parameters.
impl<M: LoraModel> LoraModel for Option<M> {
    type Lora = Option<M::Lora>;
    const IS_LAYER: bool = M::IS_LAYER;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
        let lora = self.as_ref().map(|inner| inner.adapt(cx)).transpose()?;
        if lora.as_ref().is_some_and(LoraModule::is_cache) {
            warn(&format!(
                "`{}` holds two tensors of three or more dimensions, which count as a cache of keys and \
                 values, not as parameters; if they are weights, give each a field of its own",
                cx.path()
            ));
        }
        Ok(lora)
    }
}

impl<M: LoraModule> LoraModule for Option<M> {
    type Base = Option<M::Base>;

    fn to_base(&self) -> Result<Self::Base> {
        self.as_ref().map(M::to_base).transpose()
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        if let Some(inner) = self.as_ref().filter(|inner| !inner.is_cache()) {
            inner.visit(cursor);
        }
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        if let Some(inner) = self.as_mut().filter(|inner| !inner.is_cache()) {
            inner.visit_mut(cursor);
        }
    }
}

impl<M: LoraLayer> LoraLayer for Option<M> {}

/// Adds nothing to the path.
impl<M: LoraModel> LoraModel for Box<M> {
    type Lora = Box<M::Lora>;
    const IS_LAYER: bool = M::IS_LAYER;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
        M::adapt(self, cx).map(Box::new)
    }
}

impl<M: LoraModule> LoraModule for Box<M> {
    type Base = Box<M::Base>;

    fn to_base(&self) -> Result<Self::Base> {
        M::to_base(self).map(Box::new)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        M::visit(self, cursor);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        M::visit_mut(self, cursor);
    }
}

impl<M: LoraLayer> LoraLayer for Box<M> {}

macro_rules! shared {
    ($shared:ident) => {
        /// Adds nothing to the path. A module that several places share becomes a LoRA module for each
        /// place, with adapters of its own under the place's path. The frozen tensors stay shared.
        impl<M: LoraModel> LoraModel for $shared<M> {
            type Lora = $shared<M::Lora>;
            const IS_LAYER: bool = M::IS_LAYER;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
                M::adapt(self, cx).map($shared::new)
            }
        }

        impl<M: LoraModule> LoraModule for $shared<M> {
            type Base = $shared<M::Base>;

            fn to_base(&self) -> Result<Self::Base> {
                M::to_base(self).map($shared::new)
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                M::visit(self, cursor);
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                M::visit_mut($shared::make_mut(self), cursor);
            }
        }

        impl<M: LoraLayer> LoraLayer for $shared<M> {}
    };
}

shared!(Arc);
shared!(Rc);

macro_rules! map {
    ($map:ident<$key:ident: $($bound:path),* $(; $hasher:ident: $($hash:path),*)?>, $sorted:ident) => {
        /// Each value adds its key to the path. The walk goes by sorted keys.
        impl<$key, M, $($hasher)?> LoraModel for $map<$key, M, $($hasher)?>
        where
            $key: Display + Debug + Clone $(+ $bound)*,
            M: LoraModel,
            $($hasher: Default + Clone $(+ $hash)*,)?
        {
            type Lora = $map<$key, M::Lora, $($hasher)?>;
            const IS_LAYER: bool = M::IS_LAYER;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
                let items = $sorted(self.iter()).into_iter();
                let items = items.map(|(key, item)| {
                    Ok((key.clone(), cx.field(&key.to_string(), item)?))
                });
                items.collect()
            }
        }

        impl<$key, M, $($hasher)?> LoraModule for $map<$key, M, $($hasher)?>
        where
            $key: Display + Debug + Clone $(+ $bound)*,
            M: LoraModule,
            $($hasher: Default + Clone $(+ $hash)*,)?
        {
            type Base = $map<$key, M::Base, $($hasher)?>;

            fn to_base(&self) -> Result<Self::Base> {
                let items = self.iter();
                items.map(|(key, item)| Ok((key.clone(), item.to_base()?))).collect()
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                for (key, item) in $sorted(self.iter()) {
                    cursor.field(&key.to_string(), item);
                }
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                for (key, item) in $sorted(self.iter_mut()) {
                    cursor.field(&key.to_string(), item);
                }
            }
        }

        impl<$key, M, $($hasher)?> LoraLayer for $map<$key, M, $($hasher)?>
        where
            $key: Display + Debug + Clone $(+ $bound)*,
            M: LoraLayer,
            $($hasher: Default + Clone $(+ $hash)*,)?
        {
        }
    };
}

map!(BTreeMap<K: Ord>, sorted);
map!(HashMap<K: Ord, Hash; S: BuildHasher>, sorted);

macro_rules! tuple {
    ($($name:ident $index:tt),*) => {
        /// Each item adds its index to the path.
        impl<$($name: LoraModel),*> LoraModel for ($($name,)*) {
            type Lora = ($($name::Lora,)*);
            const IS_LAYER: bool = $($name::IS_LAYER)||*;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora> {
                Ok(($(cx.field(stringify!($index), &self.$index)?,)*))
            }
        }

        impl<$($name: LoraModule),*> LoraModule for ($($name,)*) {
            type Base = ($($name::Base,)*);

            fn to_base(&self) -> Result<Self::Base> {
                Ok(($(self.$index.to_base()?,)*))
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                $(cursor.field(stringify!($index), &self.$index);)*
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                $(cursor.field(stringify!($index), &mut self.$index);)*
            }

            fn is_cache(&self) -> bool {
                let tensors = [$(self.$index.as_tensor()),*];
                let is_large = |tensor: &Tensor| tensor.rank() >= 3;
                tensors.len() == 2 && tensors.iter().all(|tensor| tensor.is_some_and(is_large))
            }
        }

        impl<$($name: LoraLayer),*> LoraLayer for ($($name,)*) {}
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);

/// Holds nothing.
impl<T> LoraModel for PhantomData<T> {
    type Lora = Self;

    fn adapt(&self, _: &mut Builder<'_>) -> Result<Self> {
        Ok(Self)
    }
}

impl<T> LoraModule for PhantomData<T> {
    type Base = Self;

    fn to_base(&self) -> Result<Self> {
        Ok(Self)
    }

    fn visit(&self, _: &mut Cursor<'_>) {}

    fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
}
