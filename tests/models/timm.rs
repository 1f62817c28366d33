//! ConvNeXt against timm: outputs of small models with exported weights, parameter counts, the list of variants.

use candle_core::safetensors::load;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Options, Weights, parameter_shapes};
use lora::{LoraConfig, LoraModel, LoraModule, Targets};
use lora_tests::{assert_close, fill_adapters, fixed};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const FIXTURES: &[&str] = &[
    "v1",
    "v1_conv_mlp",
    "v1_gelu_tanh",
    "v1_head_hidden",
    "v1_head_norm_first",
    "v1_kernels_silu",
    "v1_no_classifier",
    "v1_odd",
    "v1_overlap",
    "v1_overlap_act",
    "v1_overlap_stem",
    "v1_patch2",
    "v1_rms",
    "v2",
    "v2_conv_mlp",
    "v2_eps",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convnext")
}

/// A model that timm made, with an input and timm's results.
pub struct Fixture {
    pub config: ConvNextConfig,
    pub weights: HashMap<String, Tensor>,
    pub input: Tensor,
    pub features: Tensor,
    pub output: Tensor,
}

impl Fixture {
    pub fn read(name: &str) -> Self {
        let path = fixtures().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        let mut weights = load(path, &Device::Cpu).unwrap();
        let mut take = |name| weights.remove(name).unwrap();
        let (input, features, output) = (take("__input"), take("__features"), take("__output"));
        Self {
            config: serde_json::from_str(config).unwrap(),
            weights,
            input,
            features,
            output,
        }
    }

    fn model(&self) -> ConvNext {
        let vb = VarBuilder::from_tensors(self.weights.clone(), DType::F32, &Device::Cpu);
        ConvNext::new(&self.config, vb).unwrap()
    }

    /// The weights alone, as a checkpoint.
    pub fn save(&self, directory: &Path) -> PathBuf {
        let path = directory.join("model.safetensors");
        candle_core::safetensors::save(&self.weights, &path).unwrap();
        path
    }
}

#[test]
fn every_fixture_is_checked() {
    let files = std::fs::read_dir(fixtures()).unwrap();
    let names = files.map(|file| file.unwrap().path());
    let names = names.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let mut names: Vec<_> = names
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    names.sort();
    assert_eq!(names, FIXTURES);
}

#[test]
fn outputs_are_timms() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let model = fixture.model();
        let features = model.forward_features(&fixture.input).unwrap();
        assert_close(name, &features, &fixture.features, 1e-5);
        let output = model.forward(&fixture.input).unwrap();
        assert_close(name, &output, &fixture.output, 1e-5);
    }
}

#[test]
fn lora_outputs_are_timms_at_first_and_the_merged_models_later() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let config = LoraConfig::new(2).seed(0);
        let mut lora = fixture.model().to_lora(&config).unwrap();
        let features = lora.forward_features(&fixture.input).unwrap();
        assert_close(name, &features, &fixture.features, 1e-5);
        let output = lora.forward(&fixture.input).unwrap();
        assert_close(name, &output, &fixture.output, 1e-5);

        fill_adapters(&lora);
        let tuned = lora.forward(&fixture.input).unwrap();
        let moved = lora_tests::relative_error(&tuned, &fixture.output).unwrap();
        assert!(moved > 1e-2, "{name}: {moved:e}");
        let base = lora.to_base().unwrap();
        assert_close(name, &base.forward(&fixture.input).unwrap(), &tuned, 1e-5);
        lora.eval();
        lora.merge().unwrap();
        assert_close(name, &lora.forward(&fixture.input).unwrap(), &tuned, 1e-5);
    }
}

#[test]
fn every_adapter_and_classifier_gets_its_gradient() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let mut config = LoraConfig::new(2).seed(0);
        if fixture.config.num_classes > 0 {
            config = config.modules_to_save(["head.fc"]);
        }
        let lora = fixture.model().to_lora(&config).unwrap();
        fill_adapters(&lora);
        let output = lora.forward(&fixture.input).unwrap();
        let weights = fixed(output.shape(), DType::F32, 3);
        let loss = (output * weights).unwrap().sum_all().unwrap();
        let grads = lora.backward(&loss).unwrap();
        let input = &fixture.input;
        let check = lora.check_gradients(|model| Ok(model.forward(input)?.sqr()?.mean_all()?));
        check.unwrap();
        for param in lora.named_params() {
            if param.is_trainable() {
                let grad = grads.get(&param.tensor).unwrap();
                let size = grad.sqr().unwrap().sum_all().unwrap();
                let size: f32 = size.to_scalar().unwrap();
                assert!(size > 0.0 && size.is_finite(), "{name}: {}", param.path);
            }
        }
    }
}

/// Directional derivatives in f64 of the whole model, which no other test looks at.
#[test]
fn gradients_agree_with_finite_differences() {
    for name in ["v1", "v2_conv_mlp", "v1_overlap_act", "v1_rms"] {
        let fixture = Fixture::read(name);
        let vb = VarBuilder::from_tensors(fixture.weights.clone(), DType::F64, &Device::Cpu);
        let base = ConvNext::new(&fixture.config, vb).unwrap();
        let lora = base.to_lora(&LoraConfig::new(2).seed(0)).unwrap();
        fill_adapters(&lora);
        let input = fixture.input.to_dtype(DType::F64).unwrap();
        let loss = || {
            let output = lora.forward(&input).unwrap();
            let weights = fixed(output.shape(), DType::F64, 3);
            (output * weights).unwrap().sum_all().unwrap()
        };
        let grads = lora.backward(&loss()).unwrap();
        let (mut slope, step) = (0.0, 1e-5);
        let vars = lora.trainable_vars();
        let starts: Vec<Tensor> = vars.iter().map(|v| v.detach().copy().unwrap()).collect();
        let directions: Vec<Tensor> = (vars.iter().enumerate())
            .map(|(i, var)| fixed(var.shape(), DType::F64, i + 50))
            .collect();
        for (var, direction) in vars.iter().zip(&directions) {
            let along = (grads.get(var).unwrap() * direction).unwrap();
            slope += along.sum_all().unwrap().to_scalar::<f64>().unwrap();
        }
        let moved = |step: f64| {
            for ((var, start), direction) in vars.iter().zip(&starts).zip(&directions) {
                var.set(&(start + (direction * step).unwrap()).unwrap())
                    .unwrap();
            }
            loss().to_scalar::<f64>().unwrap()
        };
        let expected = (moved(step) - moved(-step)) / (2.0 * step);
        let error = (slope - expected).abs() / expected.abs();
        assert!(error < 1e-6, "{name}: {slope} and {expected}");
    }
}

pub fn create(
    name: &str,
    weights: Weights,
    options: &Options,
) -> lora::Result<models::Created<ConvNext>> {
    models::create(name, weights, options)
}

#[test]
fn counts_of_convnext_tiny() {
    let created = create("convnext_tiny", Weights::Placeholder, &Options::new()).unwrap();
    let lora = created.model.to_lora(&LoraConfig::new(2)).unwrap();
    assert_eq!(
        lora.summary().totals(),
        "28,721,608 parameters in all, 132,480 trainable, 28,589,128 not"
    );
    let adapted: Vec<_> = (lora.summary().rows.into_iter())
        .filter(|row| row.rank.is_some())
        .map(|row| row.path)
        .collect();
    assert_eq!(adapted.len(), 2 * 18);
    assert_eq!(adapted[0], "stages.0.blocks.0.mlp.fc1");
    assert_eq!(adapted[35], "stages.3.blocks.2.mlp.fc2");

    let config = LoraConfig::new(2).modules_to_save(["head.fc"]);
    let summary = created.model.to_lora(&config).unwrap().summary();
    assert_eq!((summary.total, summary.trainable), (28_721_608, 901_480));
}

#[test]
fn targets_and_biases_can_be_chosen() {
    let created = create("convnextv2_atto", Weights::Placeholder, &Options::new()).unwrap();
    let every_other = LoraConfig::new(2)
        .target_modules(r"stages\.0\..*\.(conv_dw|fc1)")
        .exclude_modules(["stages.0.blocks.1.mlp.fc1"]);
    // A depthwise convolution of rank 2 takes a rank that its 40 groups divide.
    let error = created.model.to_lora(&every_other).unwrap_err().to_string();
    assert!(error.contains("stages.0.blocks.0.conv_dw"), "{error}");
    let fits = every_other.rank_pattern("conv_dw", 40);
    let summary = created.model.to_lora(&fits).unwrap().summary();
    let ranks: Vec<_> = summary.rows.iter().filter_map(|row| row.rank).collect();
    assert_eq!(ranks, [40, 2, 40]);

    let unknown = LoraConfig::new(2).target_modules(Targets::Names(vec!["fc3".into()]));
    let error = created.model.to_lora(&unknown).unwrap_err().to_string();
    assert!(
        error.contains("fc3") && error.contains("mlp.fc1"),
        "{error}"
    );
}

/// One entry of timm's list of variants.
#[derive(serde::Deserialize)]
struct TimmVariant {
    args: serde_json::Value,
    parameters: usize,
    pretrained: serde_json::Value,
    tags: Vec<String>,
}

#[test]
fn variants_are_timms() {
    let text = std::fs::read_to_string(fixtures().join("variants.json")).unwrap();
    let timm: HashMap<String, TimmVariant> = serde_json::from_str(&text).unwrap();
    let mut names: Vec<&str> = timm.keys().map(String::as_str).collect();
    names.sort();
    let variants = ConvNext::variants();
    assert_eq!(variants.iter().map(|v| v.name).collect::<Vec<_>>(), names);
    assert!(models::list().starts_with(&names));
    for variant in variants {
        let name = variant.name;
        let timm = &timm[name];
        let mut args = timm.args.clone();
        // timm's shorthands.
        let settings = args.as_object_mut().unwrap();
        settings.retain(|key, value| !value.is_null() || key == "ls_init_value");
        let kernels = &mut settings["kernel_sizes"];
        if kernels.is_number() {
            *kernels = serde_json::json!(vec![kernels.clone(); 4]);
        }
        let config: ConvNextConfig = serde_json::from_value(args).unwrap();
        assert_eq!(variant.config, config, "{name}");

        let shapes = parameter_shapes::<ConvNext>(&config).unwrap();
        let count: usize = shapes.values().map(|shape| shape.elem_count()).sum();
        assert_eq!(count, timm.parameters, "{name}");

        let mut tags: Vec<_> = variant.tags().collect();
        let default = tags.first().copied();
        tags.sort();
        let mut expected = timm.tags.clone();
        expected.sort();
        assert_eq!(tags, expected, "{name}");
        if let Some(default) = default {
            assert_eq!(timm.pretrained["tag"], default, "{name}");
        }
    }
}

#[test]
fn the_walk_has_the_parameters_that_the_constructor_asks_for() {
    for name in FIXTURES {
        let fixture = Fixture::read(name);
        let frozen = fixture.model().to_frozen().unwrap();
        let mut walked: Vec<_> = (frozen.named_params().into_iter())
            .map(|param| (param.path, param.tensor.dims().to_vec()))
            .collect();
        let shapes = parameter_shapes::<ConvNext>(&fixture.config).unwrap();
        let mut asked: Vec<_> = (shapes.into_iter())
            .map(|(name, shape)| (name, shape.into_dims()))
            .collect();
        walked.sort();
        asked.sort();
        assert_eq!(walked, asked, "{name}");
    }
}
