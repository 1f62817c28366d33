//! Reading the settings of a `config.json`, with a list of everything wrong.

use crate::error::shorten;
pub(super) use crate::file::{read_json, read_object};
use candle_nn::Activation;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::HashSet;

/// More than any model has. A damaged file must not make us ask for all memory.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_LAYERS: usize = 1 << 10;

/// The activation that most models call so.
pub(super) fn activation(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluPytorchTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        _ => return None,
    })
}

/// The settings of a JSON object. Problems are collected, so that a reader can go on with a default
/// and tell of all problems at once.
pub(super) struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// What stands before the keys in messages: `rope_scaling.` for those of an inner object.
    prefix: String,
    read: RefCell<HashSet<String>>,
    problems: RefCell<Vec<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self::within(map, String::new())
    }

    fn within(map: &'a Map<String, Value>, prefix: String) -> Self {
        Self {
            map,
            prefix,
            read: RefCell::default(),
            problems: RefCell::default(),
        }
    }

    /// The value of a key, unless it is missing or null.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.into());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A setting, unless it is missing or null.
    pub(super) fn find<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let value = self.value(key)?;
        match serde_json::from_value(value.clone()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(key, &error.to_string());
                None
            }
        }
    }

    /// A setting; the default where the key is missing or null.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> T {
        self.find(key).unwrap_or(default)
    }

    /// A setting that null switches off; the default where the key is missing.
    pub(super) fn nullable<T: DeserializeOwned>(&self, key: &str, default: Option<T>) -> Option<T> {
        match self.map.contains_key(key) {
            true => self.find(key),
            false => default,
        }
    }

    /// A setting that has to be there.
    pub(super) fn need<T: DeserializeOwned + Default>(&self, key: &str) -> T {
        if self.value(key).is_none() {
            self.problem(format!("`{}{key}` is missing", self.prefix));
        }
        self.get(key, T::default())
    }

    /// A number from 1 to `most`.
    pub(super) fn count(&self, key: &str, default: usize, most: usize) -> usize {
        let value = self.get(key, default);
        if !(1..=most).contains(&value) {
            self.refuse(key, &format!("a number from 1 to {most} is expected"));
        }
        value.clamp(1, most)
    }

    /// The settings of an inner object, if it is there and not null. Hand them to
    /// [`close`](Self::close) in the end.
    pub(super) fn object(&self, key: &str) -> Option<Keys<'a>> {
        match self.value(key)? {
            Value::Object(map) => Some(Keys::within(map, format!("{}{key}.", self.prefix))),
            _ => {
                self.refuse(key, "an object is expected");
                None
            }
        }
    }

    /// Whether a key is there and null.
    pub(super) fn has_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// The settings of an inner object that is missing.
    pub(super) fn without<'b>(&self, empty: &'b Map<String, Value>) -> Keys<'b> {
        Keys::within(empty, format!("{}rope_parameters.", self.prefix))
    }

    /// Ends the reading of an inner object. A key that was not read is a problem.
    pub(super) fn close(&self, inner: Keys<'_>) {
        for key in inner.unread() {
            inner.refuse(key, "no such setting is known here");
        }
        self.problems
            .borrow_mut()
            .append(&mut inner.problems.borrow_mut());
    }

    /// A setting that must have this value, be missing, or be null.
    pub(super) fn only(&self, key: &str, expected: &Value) {
        if self.value(key).is_some_and(|value| value != expected) {
            self.refuse(key, &format!("only {expected} is supported"));
        }
    }

    /// Notes what is wrong with the value of a key.
    pub(super) fn refuse(&self, key: &str, reason: &str) {
        let value = self.map.get(key).map(|value| shorten(&value.to_string()));
        let value = value.unwrap_or_else(|| "missing".into());
        self.problem(format!("`{}{key}` is {value}: {reason}", self.prefix));
    }

    /// Notes a problem, once.
    pub(super) fn problem(&self, problem: String) {
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// The share of numbers that a dropout drops.
    pub(super) fn dropout(&self, key: &str, default: f64) -> f64 {
        let value = self.find(key);
        if value.is_some_and(|value: f64| !(0.0..1.0).contains(&value)) {
            self.refuse(key, "a number from 0 to less than 1 is expected");
        }
        value.unwrap_or(default)
    }

    /// The keys that were not read. Null, or a switch that is off, says nothing.
    pub(super) fn unread(&self) -> Vec<&'a str> {
        let read = self.read.borrow();
        let says = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        let keys = self.map.iter().filter(|(_, value)| says(value));
        let keys = keys.map(|(key, _)| key.as_str());
        keys.filter(|key| !read.contains(*key)).collect()
    }

    /// What the file says that has no effect: dropouts that training does not draw, and keys that are
    /// neither settings nor harmless.
    pub(super) fn without_effect(&self, dropouts: &[&str], harmless: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        let unread = self.unread();
        for key in dropouts.iter().filter(|key| unread.contains(*key)) {
            let value = self.get(key, 0.0);
            if value != 0.0 {
                found.push(format!(
                    "`{key}` is {value}: training has no such dropout here"
                ));
            }
        }
        let unread = self.unread().into_iter();
        let unread = unread.filter(|key| !harmless.contains(key));
        found.extend(unread.map(|key| format!("`{key}` is no setting of this family")));
        found
    }

    /// Refuses a quantised checkpoint.
    pub(super) fn refuse_quantised(&self) {
        const KEY: &str = "quantization_config";
        if self.value(KEY).is_some() {
            self.refuse(KEY, "dequantise the checkpoint first");
        }
    }

    /// All problems, of which there may be none.
    pub(super) fn into_problems(self) -> Vec<String> {
        self.problems.into_inner()
    }
}
