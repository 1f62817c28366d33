//! Models that stand under another prefix than the one that was trained, and keys of strangers.

use super::*;

/// A model around the one that was trained.
#[derive(Clone, Debug, LoraModel)]
struct Outer {
    model: Stack,
}

forward!(Outer, LoraOuter, |self, xs| { self.model.forward(xs) });

impl Twin for Outer {
    fn new(weights: &Weights) -> Self {
        Self {
            model: Stack::new(weights),
        }
    }
}

/// Two models of one kind: a path without their names may mean either.
#[derive(Clone, Debug, LoraModel)]
struct Pair {
    left: Stack,
    right: Stack,
}

forward!(Pair, LoraPair, |self, xs| { self.left.forward(xs) });

impl Twin for Pair {
    fn new(weights: &Weights) -> Self {
        Self {
            left: Stack::new(weights),
            right: Stack::new(weights),
        }
    }
}

fn with_prefix(fixture: &Fixture, prefix: &str) -> tempfile::TempDir {
    let mut files = Files::read(&fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        let bare = key.strip_prefix("base_model.model.").unwrap();
        files.rename(&key, &format!("{prefix}{bare}"));
    }
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    dir
}

#[test]
fn prefixes_that_moved() {
    let peft = "base_model.model.";
    for case in ["stack", "stack_patterns", "stack_exclude"] {
        let fixture = Fixture::new(case);
        for prefix in ["", "model.", "model.model.", "module.", "_orig_mod.", peft] {
            for front in ["", peft] {
                let dir = with_prefix(&fixture, &format!("{front}{prefix}"));
                let dir = AdapterDir::new(dir.path()).report(|_| {});
                loads_anywhere::<Stack>(&fixture, &dir);
                // Anchored patterns mean one of the two models only.
                if case != "stack_patterns" {
                    loads_anywhere::<Outer>(&fixture, &dir);
                }
            }
        }
    }
}

/// A tool that changes the keys leaves the settings as they were. Only the patterns tell, as the
/// ranks are all the same.
#[test]
fn patterns_of_alpha_find_their_layers_under_moved_prefixes() -> Result {
    let weights = Fixture::new("stack").base;
    let base = Stack::new(&weights);
    let config = LoraConfig::new(2)
        .target_modules(["fc1", "fc2"])
        .alpha_pattern("layers.1.fc1", 20.0)
        .init(lora::Init::Random);
    let mut model = base.to_lora(&config)?;
    model.eval();
    let saved = tempfile::tempdir()?;
    model.save_adapter(saved.path().join("adapter"))?;
    let input = Fixture::new("stack").input();
    let expected = model.forward(&input)?;
    let path = saved.path().join("base.safetensors");
    candle_core::safetensors::save(&weights.0.into_iter().collect(), &path)?;
    for prefix in ["module.", "base_model.model.base_model.model.", ""] {
        let mut files = Files::read(&saved.path().join("adapter"));
        for key in files.weights.0.clone().into_keys() {
            let bare = key.strip_prefix("base_model.model.").unwrap();
            files.rename(&key, &format!("{prefix}{bare}"));
        }
        let dir = tempfile::tempdir()?;
        files.write(dir.path());
        let dir = AdapterDir::new(dir.path()).report(|_| {});
        let output = base.with_adapter(dir.clone())?.forward(&input)?;
        assert!(error(&output, &expected) <= 1e-5, "{prefix}");
        let out = saved.path().join("out.safetensors");
        merge_checkpoint(&path, dir, &out)?;
        let output = Stack::new(&Weights::read(out)).forward(&input)?;
        assert!(error(&output, &expected) <= 1e-5, "{prefix} merged");
    }
    Ok(())
}

#[test]
fn an_ambiguous_path_needs_a_rename() {
    let fixture = Fixture::new("stack");
    let pair = Pair::new(&fixture.base);
    let words = [
        "more than one way",
        "`layers.0.fc1`",
        "`left.layers.0.fc1`, `right.layers.0.fc1` in the model",
        "AdapterDir::new(dir).rename(\"prefix in the file\", \"prefix in the model\")",
    ];
    refused(pair.with_adapter(fixture.adapter()), &words);
    let dir = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("", "left");
    loads_anywhere::<Pair>(&fixture, &dir);
    let right = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("", "right");
    let mut model = pair.with_adapter(dir).unwrap();
    refused(
        model.load_adapter(right.clone()),
        &["`right.layers.0.fc1` is a target of the file"],
    );
    model.load_adapter_as("right", right).unwrap();
    let names: Vec<_> = model
        .layer_status()
        .into_iter()
        .map(|layer| layer.name)
        .collect();
    assert!(names.contains(&"right.layers.1.fc2".into()), "{names:?}");
}

#[test]
fn a_file_of_strangers_is_told_apart() -> Result {
    let fixture = Fixture::new("stack");
    let mut files = Files::read(&fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        files.rename(&key, &key.replace("fc", "linear"));
    }
    files.config["target_modules"] = json!(["linear1", "linear2", "fc1"]);
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let words = [
        "none of the file's paths is one of the model's",
        "`layers.0.linear1`, `layers.0.linear2`, `layers.1.linear1`, .. in the file",
        "`layers.0.fc1`, `layers.0.fc2`, `layers.1.fc1`, .. in the model",
        ".rename(",
    ];
    refused(Stack::new(&fixture.base).with_adapter(dir.path()), &words);
    let star = AdapterDir::new(dir.path())
        .report(|_| {})
        .rename("layers.*.linear1", "layers.*.fc1")
        .rename("layers.*.linear2", "layers.*.fc2");
    loads_anywhere::<Stack>(&fixture, &star);
    Ok(())
}
