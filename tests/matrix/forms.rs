//! `fixtures/peft/forms`: every form in which PEFT saves an adapter.
//!
//! Each is loaded, gives PEFT's outputs, and is saved again as it was.
//! `LORA_PEFT_EXPORT=DIR cargo test -p lora-tests --test matrix forms` leaves what was saved in
//! DIR, for `check_adapters.py`.

use super::api;
use super::cases::{folder, near, read_json, run, same};
use super::twins::{Moe, Tied, TiedLm, Transposed, UntiedLm};
use crate::peft::models::{Conv1dNet, Conv2dNet, EmbedNet, Mlp, Stack, Twin};
use crate::peft::support::{Fixture, Result, Weights};
use candle_core::{DType, Module};
use lora::{LoraModel, LoraModule};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder, and what makes it.
struct Form {
    name: String,
    spec: Value,
    fixture: Fixture,
}

impl Form {
    fn new(name: &str) -> Self {
        let specs = read_json(folder("peft").join("forms.json"));
        let mut fixture = Fixture::new(&format!("forms/{name}"));
        fixture.name = name.into();
        Self {
            name: name.into(),
            spec: specs[name].clone(),
            fixture,
        }
    }

    fn adapters(&self) -> Vec<&String> {
        self.spec["adapters"].as_object().unwrap().keys().collect()
    }

    fn dir_of(&self, adapter: &str) -> PathBuf {
        match adapter {
            "default" => self.fixture.adapter(),
            name => self.fixture.adapter().join(name),
        }
    }

    /// An output in the fixture: that of the base model cast to bf16 is coarse.
    fn tolerance(&self) -> f64 {
        match self.spec.get("dtype") {
            Some(_) => 2e-2,
            None => 1e-5,
        }
    }

    fn check<T: Twin>(&self) -> Result {
        let base = T::new(&self.fixture.base);
        let (input, io) = (self.fixture.input(), &self.fixture.io);
        let adapters = self.adapters();
        let first = self.dir_of(adapters[0]);
        let mut model = match base.with_adapter(&first) {
            // To initialise the base anew while loading is PEFT's way; refusing is right, too.
            Err(error) if self.name.ends_with("_raw") => {
                let named = error.to_string().contains("init_lora_weights");
                return if named { Ok(()) } else { Err(error.into()) };
            }
            model => model?,
        };
        for name in &adapters[1..] {
            api::load_as(&mut model, name, &self.dir_of(name))?;
        }
        for name in &adapters {
            if adapters.len() > 1 {
                api::set_active(&mut model, &[name])?;
            }
            model.eval();
            let output = model.forward(&input)?;
            let merged = io.0.get(&format!("merged_output.{name}"));
            let unmerged = io.get(&format!("output.{name}"));
            // PEFT's head reads the adapted table once it is merged, ours does in any case.
            let expected = match self.spec["model"] == "tied" {
                true => merged.cloned().unwrap_or(unmerged),
                false => unmerged,
            };
            near(
                &format!("output.{name}"),
                &output,
                &expected,
                self.tolerance(),
            )?;
            let base_output = io.get("base_output");
            let acts = near("", &expected, &base_output, 0.05).is_err();
            same("the adapter acts", acts, true)?;
            let output = model.to_base()?.to_frozen_output(&input)?;
            near(
                &format!("merged_output.{name}"),
                &output,
                merged.unwrap_or(&expected),
                self.tolerance(),
            )?;
        }
        if adapters.len() > 1 {
            api::set_active(&mut model, &[adapters[0]])?;
        }
        self.check_saved(&model)
    }

    /// The same files with the same keys and values.
    fn check_saved<M: LoraModule<Base: Twin>>(&self, model: &M) -> Result {
        let temporary = tempfile::tempdir()?;
        let exported = std::env::var_os("LORA_PEFT_EXPORT");
        let dir = exported.map_or(temporary.path().into(), PathBuf::from);
        let dir = dir.join(&self.name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("model"), self.spec["model"].as_str().unwrap())?;
        for file in ["base.safetensors", "io.safetensors"] {
            fs::copy(self.fixture.dir.join(file), dir.join(file))?;
        }
        let adapter = dir.join("adapter");
        api::save_all(model, &adapter)?;
        if self.name.ends_with("_raw") {
            // Saved for the base as it was, of twice the rank: such a file needs no start.
            let base = M::Base::new(&self.fixture.base);
            let output = base
                .with_adapter(&adapter)?
                .forward(&self.fixture.input())?;
            let expected = self.fixture.io.get("output.default");
            return near(
                "output of the converted",
                &output,
                &expected,
                self.tolerance(),
            );
        }

        let ours = api::adapter_files(&adapter)?;
        for name in self.adapters() {
            // A sole adapter of any name is the model's own here.
            let other = if self.adapters().len() == 1 {
                "default"
            } else {
                name
            };
            let file = ours
                .get(other)
                .ok_or_else(|| format!("`{name}` is not saved"))?;
            let theirs = self.dir_of(name).join(lora::peft::WEIGHTS_FILE);
            self.same_file(&Weights::read(file), &Weights::read(&theirs))?;
            same_settings(file, &theirs, &self.spec["adapters"][name])?;
        }
        same("number of adapters", ours.len(), self.adapters().len())
    }

    fn same_file(&self, ours: &Weights, theirs: &Weights) -> Result {
        // With bias="all" PEFT also writes the biases of both copies of a trained module.
        let is_copy =
            |key: &&String| key.contains(".modules_to_save.") || key.contains(".original_module.");
        let keys: Vec<_> = theirs.0.keys().filter(|key| !is_copy(key)).collect();
        same("saved keys", ours.0.keys().collect(), keys)?;
        for (key, tensor) in &ours.0 {
            let other = &theirs.0[key];
            if self.spec.get("file_dtype").is_none() {
                same(key, tensor.dtype(), other.dtype())?;
            }
            same(key, tensor.dims(), other.dims())?;
            let wide = |tensor: &candle_core::Tensor| tensor.to_dtype(DType::F64);
            near(key, &wide(tensor)?, &wide(other)?, 0.0)?;
        }
        Ok(())
    }
}

/// The settings that must be in the file as they were.
fn same_settings(ours: &Path, theirs: &Path, arguments: &Value) -> Result {
    let config = |file: &Path| read_json(file.with_file_name(lora::peft::CONFIG_FILE));
    let (ours, mut theirs) = (config(ours), config(theirs));
    // A linear layer that PEFT adapts by the name of its weight is written by its own name.
    if theirs["target_parameters"] == serde_json::json!(["fc1.weight"]) {
        theirs["target_parameters"] = Value::Null;
    }
    for (key, off) in [
        ("use_dora", Value::Bool(false)),
        ("lora_bias", Value::Bool(false)),
        ("use_rslora", Value::Bool(false)),
        ("bias", "none".into()),
        ("trainable_token_indices", Value::Null),
        ("target_parameters", Value::Null),
        ("ensure_weight_tying", Value::Bool(false)),
        ("lora_dropout", 0.0.into()),
    ] {
        let ours = ours.get(key).unwrap_or(&off);
        same(key, ours, theirs.get(key).unwrap_or(&off))?;
    }
    // With patterns the commonest rank is written, and the others follow by pattern.
    if arguments.get("rank_pattern").is_none() {
        same("r", &ours["r"], &theirs["r"])?;
    }
    Ok(())
}

/// The output of a base model, through the library's layers: candle's know no bf16 convolution.
trait FrozenOutput {
    fn to_frozen_output(&self, input: &candle_core::Tensor) -> Result<candle_core::Tensor>;
}

impl<T: lora::LoraModel<Lora: Module>> FrozenOutput for T {
    fn to_frozen_output(&self, input: &candle_core::Tensor) -> Result<candle_core::Tensor> {
        Ok(self.to_frozen()?.forward(input)?)
    }
}

/// Checks one form.
#[track_caller]
fn form(name: &str) {
    let form = Form::new(name);
    let check = match form.spec["model"].as_str().unwrap() {
        "mlp" => Form::check::<Mlp>,
        "stack" => Form::check::<Stack>,
        "conv1d" => Form::check::<Conv1dNet>,
        "conv2d" | "conv2d_grouped" => Form::check::<Conv2dNet>,
        "embedding" => Form::check::<EmbedNet>,
        "tied" => Form::check::<Tied>,
        "tied_lm" => Form::check::<TiedLm>,
        "untied_lm" => Form::check::<UntiedLm>,
        "transposed" => Form::check::<Transposed>,
        "moe" => Form::check::<Moe>,
        other => panic!("no twin of `{other}`"),
    };
    run([(name.to_string(), form)], 1, check);
}

macro_rules! forms {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            form(stringify!($name));
        })*

        #[test]
        fn every_form_is_a_test() {
            let forms = read_json(folder("peft").join("forms.json"));
            let names: Vec<_> = forms.as_object().unwrap().keys().cloned().collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

forms! {
    linear_dora
    linear_dora_rslora
    linear_dora_patterns
    linear_dora_head
    linear_dora_bf16
    linear_dora_bias_all
    linear_lora_bias
    linear_lora_bias_rslora
    linear_lora_bias_bias_all
    linear_file_bf16
    linear_patterns_head
    linear_gaussian
    linear_orthogonal
    linear_mica
    linear_pissa_converted
    linear_olora_converted
    linear_pissa_raw
    linear_olora_raw
    named_two
    named_three
    named_alone
    named_heads
    stack_layers
    stack_dora
    conv1d_dora
    conv1d_lora_bias
    conv2d_dora
    conv2d_lora_bias
    conv2d_grouped_bias_all
    embedding_dora
    embedding_tokens
    linear_parameters
    tied
    tied_lm_ensured
    tied_lm_saved
    tied_lm_tokens
    tied_lm_dora
    untied_lm_tokens
    transposed
    transposed_dora
    moe_parameters
    moe_both
}
