//! Where settings come from: defaults, files, flags. The later wins.

use super::flags::Flags;
use super::kind::Kind;
use super::settings::Settings;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Settings of which one takes the place of the other.
const INSTEAD: [(&str, &str); 3] = [
    ("epochs", "steps"),
    ("held_out", "valid"),
    ("target_modules", "target_regex"),
];

/// Settings as they were given, and by whom.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: Map<String, Value>,
    /// The file that gave a setting; none for a flag.
    files: BTreeMap<String, PathBuf>,
}

impl Layers {
    /// Puts a file's settings over these: TOML, or YAML if its name ends so.
    ///
    /// # Errors
    /// If the file cannot be read, or holds a key that is no setting.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let end = path
            .extension()
            .map(|end| end.to_string_lossy().to_lowercase());
        let values: Result<Map<String, Value>> = match end.as_deref() {
            Some("yaml" | "yml") => serde_saphyr::from_str(&text).map_err(Into::into),
            Some("toml") => toml::from_str(&text).map_err(Into::into),
            _ => bail!("{name}: settings are in a file that ends in .toml, .yaml or .yml"),
        };
        let values = values.with_context(|| format!("{name} is not as settings are written"))?;
        let known = Flags::names();
        let mut problems = Vec::new();
        let mut own = Map::new();
        for (key, value) in values {
            // A flag's name without its dashes in front is a key, too.
            let plain = key.replace('-', "_");
            match known.contains(&plain) {
                true => drop(own.insert(plain, value)),
                false => problems.push(unknown(&key, &known)),
            }
        }
        if !problems.is_empty() {
            bail!("{name}: {}", problems.join("\n  "));
        }
        self.put(own, Some(path))
    }

    /// Puts flags over these.
    ///
    /// # Errors
    /// If two flags exclude each other.
    pub fn flags(&mut self, flags: &impl Serialize) -> Result<()> {
        let Value::Object(values) = serde_json::to_value(flags)? else {
            bail!("flags are no list of settings");
        };
        let given = values.into_iter().filter(|(_, value)| !value.is_null());
        self.put(given.collect(), None)
    }

    fn put(&mut self, values: Map<String, Value>, file: Option<&Path>) -> Result<()> {
        for (a, b) in INSTEAD {
            let named = |key: &str| match file {
                Some(path) => format!("`{key}` of {}", path.display()),
                None => flag(key),
            };
            match (values.contains_key(a), values.contains_key(b)) {
                (true, true) => bail!("{} and {} exclude each other: keep one", named(a), named(b)),
                (true, false) => self.remove(b),
                (false, true) => self.remove(a),
                (false, false) => {}
            }
        }
        for (key, value) in values {
            match file {
                Some(path) => drop(self.files.insert(key.clone(), path.into())),
                None => drop(self.files.remove(&key)),
            }
            self.values.insert(key, value);
        }
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        self.values.shift_remove(key);
        self.files.remove(key);
    }

    /// The value of a setting that must be known before all others.
    ///
    /// # Errors
    /// If the value is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => bail!("{} is {other}: a text is expected", self.name(key)),
            None => Ok(None),
        }
    }

    /// What to call a setting: as the user gave it.
    pub fn name(&self, key: &str) -> String {
        match self.files.get(key) {
            Some(path) => format!("`{key}` of {}", path.display()),
            None => flag(key),
        }
    }

    /// All settings for a job, with its defaults where none is given.
    ///
    /// # Errors
    /// Lists values of a wrong type or out of range, and settings that the job does not have.
    pub fn settings(&self, kind: Kind) -> Result<Settings> {
        let mut all = kind.defaults();
        for (a, b) in INSTEAD {
            for (given, other) in [(a, b), (b, a)] {
                if self.values.contains_key(given) {
                    all.shift_remove(other);
                }
            }
        }
        let mut problems = Vec::new();
        for (key, value) in &self.values {
            let mut only = Settings::any();
            only.insert(key.clone(), value.clone());
            match serde_json::from_value::<Settings>(only.into()) {
                Ok(_) => drop(all.insert(key.clone(), value.clone())),
                Err(error) => problems.push(format!("{}: {error}", self.name(key))),
            }
        }
        if problems.is_empty() {
            let mut settings: Settings = serde_json::from_value(all.into())?;
            problems = settings.complete(kind, &|key| self.name(key));
            if problems.is_empty() {
                return Ok(settings);
            }
        }
        match problems.as_slice() {
            [one] => bail!("{one}"),
            many => bail!("the settings do not do:\n  - {}", many.join("\n  - ")),
        }
    }
}

/// A setting as a flag.
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The problem with a key that is no setting.
fn unknown(key: &str, known: &[String]) -> String {
    let alike = |name: &&String| strsim::jaro_winkler(key, name);
    let nearest = known
        .iter()
        .max_by(|a, b| alike(a).total_cmp(&alike(b)))
        .filter(|name| alike(name) > 0.7);
    let key: String = key.chars().take(80).collect();
    match nearest {
        Some(name) => format!("`{key}` is no setting; did you mean `{name}`?"),
        None => format!("`{key}` is no setting: `lora train --help` lists them"),
    }
}
