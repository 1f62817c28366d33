//! Adapters in the formats of kohya, diffusers and mlx-lm.

use super::models::{Conv2dNet, Mlp, Twin};
use super::support::*;
use candle_core::{Device, Module, Tensor};
use lora::peft::import::{Format, Options, export, import};
use lora::{LoraConfig, LoraModel};
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn refused<T>(result: lora::Result<T>, words: &[&str]) {
    let problem = result.err().expect("refused").to_string();
    for word in words {
        assert!(problem.contains(word), "no `{word}` in: {problem}");
    }
}

/// The fixture's adapter under other keys.
struct Elsewhere {
    fixture: Fixture,
    /// A and B of each layer of the fixture, by path.
    layers: Vec<(String, Tensor, Tensor)>,
    dir: tempfile::TempDir,
}

impl Elsewhere {
    fn new(case: &str) -> Self {
        let fixture = Fixture::new(case);
        let weights = Files::read(&fixture.adapter()).weights;
        let layers = weights.0.iter().filter_map(|(key, a)| {
            let path = key.strip_suffix(".lora_A.weight")?;
            let b = weights.get(&format!("{path}.lora_B.weight"));
            let path = path.strip_prefix("base_model.model.")?;
            Some((path.into(), a.clone(), b))
        });
        Self {
            layers: layers.collect(),
            fixture,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Writes tensors as one file.
    fn file(&self, tensors: Vec<(String, Tensor)>) -> PathBuf {
        self.file_with(tensors, None)
    }

    fn file_with(
        &self,
        tensors: Vec<(String, Tensor)>,
        metadata: Option<HashMap<String, String>>,
    ) -> PathBuf {
        let path = self.dir.path().join("adapters.safetensors");
        let tensors = tensors
            .into_iter()
            .map(|(key, tensor)| (key, tensor.contiguous().unwrap()));
        let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), metadata).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn adapter(&self) -> PathBuf {
        self.dir.path().join("adapter")
    }

    fn base(&self) -> PathBuf {
        self.fixture.dir.join("base.safetensors")
    }

    /// The directory that was made gives the fixture's output.
    #[track_caller]
    fn gives<T: Twin>(&self) {
        let model = T::new(&self.fixture.base)
            .with_adapter(self.adapter())
            .unwrap();
        let output = model.forward(&self.fixture.input()).unwrap();
        assert!(error(&output, &self.fixture.io.get("output")) <= 1e-5);
    }

    /// The adapter goes to the format and back without a change in the output.
    #[track_caller]
    fn goes_there_and_back<T: Twin>(&self, format: Format, to: &Path) {
        let options = Options::new().base(self.base());
        export(self.fixture.adapter(), to, format, &options).unwrap();
        assert_eq!(import(to, self.adapter(), &options).unwrap(), format);
        self.gives::<T>();
    }
}

fn scalar(value: f32) -> Tensor {
    Tensor::new(value, &Device::Cpu).unwrap()
}

/// The `linear` fixture has rank 3 and alpha 6.
#[test]
fn files_of_kohya() -> Result {
    let case = Elsewhere::new("linear");
    let tensors = |component: &str| -> Vec<(String, Tensor)> {
        let tensors = case.layers.iter().flat_map(|(path, a, b)| {
            let module = format!("lora_{component}_{}", path.replace('.', "_"));
            [
                (format!("{module}.lora_down.weight"), a.clone()),
                (format!("{module}.lora_up.weight"), b.clone()),
                (format!("{module}.alpha"), scalar(6.0)),
            ]
        });
        tensors.collect()
    };
    let file = case.file(tensors("unet"));
    let options = Options::new().base(case.base());
    assert_eq!(import(&file, case.adapter(), &options)?, Format::Kohya);
    case.gives::<Mlp>();
    let config = LoraConfig::from_pretrained(case.adapter())?;
    assert_eq!((config.rank, config.alpha), (3, 6.0));

    let words = ["`_` for each `.`", "Options::base"];
    refused(import(&file, case.adapter(), &Options::new()), &words);
    let other = Options::new().modules(["fc1"]);
    refused(
        import(&file, case.adapter(), &other),
        &["`lora_unet_fc2`: is no module of the base"],
    );
    let both = Options::new().modules(["fc1", "f.c2", "f_c2", "fc2"]);
    import(&file, case.adapter(), &both)?;
    let twice = Options::new().modules(["fc1", "fc2", "a.b", "a_b"]);
    let named = vec![("lora_unet_a_b.lora_down.weight".to_string(), scalar(1.0))];
    refused(
        import(case.file(named), case.adapter(), &twice),
        &["may be a.b or a_b"],
    );

    // Several components in one file.
    let file = case.file([tensors("te"), tensors("unet")].concat());
    refused(
        import(&file, case.adapter(), &options),
        &["te, unet", "Options::component"],
    );
    for component in ["te", "lora_unet"] {
        import(&file, case.adapter(), &options.clone().component(component))?;
        case.gives::<Mlp>();
    }
    // Without an alpha the scaling is 1.
    let plain = tensors("unet")
        .into_iter()
        .filter(|(key, _)| !key.ends_with("alpha"));
    import(case.file(plain.collect()), case.adapter(), &options)?;
    assert_eq!(LoraConfig::from_pretrained(case.adapter())?.alpha, 3.0);
    Ok(())
}

/// The matrices of a linear layer as those of a convolution of one pixel.
#[test]
fn matrices_of_one_pixel() -> Result {
    let case = Elsewhere::new("linear");
    let pixel = |tensor: &Tensor| tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap();
    let tensors = case.layers.iter().flat_map(|(path, a, b)| {
        [
            (format!("lora_unet_{path}.lora_down.weight"), pixel(a)),
            (format!("lora_unet_{path}.lora_up.weight"), pixel(b)),
            (format!("lora_unet_{path}.alpha"), scalar(6.0)),
        ]
    });
    let file = case.file(tensors.collect());
    import(file, case.adapter(), &Options::new().base(case.base()))?;
    case.gives::<Mlp>();
    Ok(())
}

#[test]
fn files_of_diffusers() -> Result {
    let case = Elsewhere::new("linear");
    for (down, up, alpha) in [
        (".lora.down.weight", ".lora.up.weight", true),
        (
            ".lora_linear_layer.down.weight",
            ".lora_linear_layer.up.weight",
            true,
        ),
        (".lora_A.weight", ".lora_B.weight", true),
        (".lora_A.weight", ".lora_B.weight", false),
    ] {
        for component in ["unet", "transformer"] {
            let tensors = case.layers.iter().flat_map(|(path, a, b)| {
                let mut tensors = vec![
                    (format!("{component}.{path}{down}"), a.clone()),
                    (format!("{component}.{path}{up}"), b.clone()),
                ];
                if alpha {
                    tensors.push((format!("{component}.{path}.alpha"), scalar(6.0)));
                }
                tensors
            });
            let settings = json!({format!("{component}.r"): 3, format!("{component}.lora_alpha"): 6,
                format!("{component}.target_modules"): ["fc1", "fc2"]});
            let metadata = HashMap::from([("lora_adapter_metadata".into(), settings.to_string())]);
            let file = case.file_with(tensors.collect(), (!alpha).then_some(metadata));
            assert_eq!(
                import(file, case.adapter(), &Options::new())?,
                Format::Diffusers
            );
            case.gives::<Mlp>();
        }
    }
    Ok(())
}

/// The oldest files name the projections of attention in their own way.
#[test]
fn the_oldest_files_of_diffusers() -> Result {
    let case = Elsewhere::new("linear");
    let (_, a, b) = &case.layers[0];
    for (component, path) in [
        ("unet", "attn1.to_out.0"),
        ("text_encoder", "attn1.out_proj"),
    ] {
        let middle = if component == "unet" {
            ".processor"
        } else {
            ""
        };
        let key = |end: &str| format!("{component}.attn1{middle}.to_out_lora.{end}.weight");
        let file = case.file(vec![(key("down"), a.clone()), (key("up"), b.clone())]);
        import(file, case.adapter(), &Options::new())?;
        let keys: Vec<_> = Files::read(&case.adapter()).weights.0.into_keys().collect();
        let expected = ["A", "B"].map(|m| format!("base_model.model.{path}.lora_{m}.weight"));
        assert_eq!(keys, expected);
    }
    Ok(())
}

#[test]
fn files_of_mlx_lm() -> Result {
    let case = Elsewhere::new("linear");
    let tensors = case.layers.iter().flat_map(|(path, a, b)| {
        [
            (format!("{path}.lora_a"), a.t().unwrap()),
            (format!("{path}.lora_b"), b.t().unwrap()),
        ]
    });
    let file = case.file(tensors.collect());
    refused(
        import(&file, case.adapter(), &Options::new()),
        &["no adapter_config.json beside it"],
    );
    let config = case.dir.path().join("adapter_config.json");
    std::fs::write(&config, json!({"fine_tune_type": "full"}).to_string())?;
    refused(
        import(&file, case.adapter(), &Options::new()),
        &["trained in full"],
    );
    let settings = json!({"fine_tune_type": "lora", "num_layers": 2,
        "lora_parameters": {"rank": 3, "scale": 2.0, "dropout": 0.0}});
    std::fs::write(&config, settings.to_string())?;
    let base = Mlp::new(&case.fixture.base);
    let words = ["the settings are mlx-lm's", "peft::import::import converts"];
    refused(base.with_adapter(case.dir.path()), &words);
    // The directory, as mlx-lm takes it.
    assert_eq!(
        import(case.dir.path(), case.adapter(), &Options::new())?,
        Format::MlxLm
    );
    case.gives::<Mlp>();
    Ok(())
}

#[test]
fn adapters_go_there_and_back() {
    for case in ["linear", "linear_rslora", "linear_patterns"] {
        let case = Elsewhere::new(case);
        let to = |name: &str| case.dir.path().join(name);
        case.goes_there_and_back::<Mlp>(Format::Kohya, &to("kohya.safetensors"));
        case.goes_there_and_back::<Mlp>(Format::Diffusers, &to("diffusers.safetensors"));
        case.goes_there_and_back::<Mlp>(Format::MlxLm, &to("mlx"));
    }
    let case = Elsewhere::new("conv2d");
    let to = |name: &str| case.dir.path().join(name);
    case.goes_there_and_back::<Conv2dNet>(Format::Kohya, &to("kohya.safetensors"));
    case.goes_there_and_back::<Conv2dNet>(Format::Diffusers, &to("diffusers.safetensors"));
    let words = ["is a convolution, which mlx-lm does not adapt"];
    let adapter = case.fixture.adapter();
    refused(
        export(adapter, to("mlx"), Format::MlxLm, &Options::new()),
        &words,
    );
}

/// A scaling that the values cannot take in is an error, not a file that nobody reads.
#[test]
fn a_scaling_that_is_too_large() -> Result {
    let case = Elsewhere::new("linear");
    let mut files = Files::read(&case.fixture.adapter());
    files.config["lora_alpha"] = json!(1e40);
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    for format in [Format::Kohya, Format::Diffusers] {
        let to = dir.path().join("x.safetensors");
        let result = export(dir.path(), &to, format, &Options::new());
        refused(result, &["not finite in F32: the scaling is too large"]);
        assert!(!to.exists());
    }
    let to = dir.path().join("mlx");
    export(dir.path(), &to, Format::MlxLm, &Options::new())?;
    import(&to, case.adapter(), &Options::new())?;
    Ok(())
}

/// What mlx-lm reads: its own keys, and settings that name the layers.
#[test]
fn what_mlx_lm_gets() -> Result {
    let case = Elsewhere::new("stack_patterns");
    let to = case.dir.path().join("mlx");
    export(case.fixture.adapter(), &to, Format::MlxLm, &Options::new())?;
    let config = read_config(&to);
    assert_eq!(config["lora_parameters"]["keys"], json!(["fc1", "fc2"]));
    assert_eq!(config["num_layers"], -1);
    let rank = config["lora_parameters"]["rank"].as_u64().unwrap() as usize;
    let weights = Weights::read(to.join("adapters.safetensors"));
    for (path, a, b) in &case.layers {
        let (mine, theirs) = (
            weights.get(&format!("{path}.lora_a")),
            weights.get(&format!("{path}.lora_b")),
        );
        assert_eq!(mine.dims(), [a.dim(1)?, rank]);
        assert_eq!(theirs.dims(), [rank, b.dim(0)?]);
    }
    // DoRA has a place there, and in none of the others.
    let case = Elsewhere::new("forms/linear_dora");
    let to = case.dir.path().join("mlx");
    export(case.fixture.adapter(), &to, Format::MlxLm, &Options::new())?;
    import(&to, case.adapter(), &Options::new())?;
    let model = Mlp::new(&case.fixture.base).with_adapter(case.adapter())?;
    let output = model.forward(&case.fixture.input())?;
    assert!(error(&output, &case.fixture.io.get("output.default")) <= 1e-5);
    for format in [Format::Kohya, Format::Diffusers] {
        let result = export(
            case.fixture.adapter(),
            to.join("x"),
            format,
            &Options::new(),
        );
        refused(result, &["DoRA"]);
    }
    Ok(())
}

#[test]
fn what_cannot_be_converted_says_so() -> Result {
    let case = Elsewhere::new("linear");
    let one = |key: &str| {
        vec![(
            key.to_string(),
            Tensor::ones((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap(),
        )]
    };
    let options = Options::new().modules(["fc"]);
    for (key, words) in [
        ("lora_unet_fc.hada_w1_a", "adapter of LyCORIS"),
        ("fc.lokr_w1", "adapter of LyCORIS"),
        ("something.else", "neither kohya's keys"),
        ("base_model.model.fc.lora_A.weight", "has the keys of PEFT"),
        ("unet.fc.lora_A.weight", "`fc` lacks A or B"),
    ] {
        refused(
            import(case.file(one(key)), case.adapter(), &options),
            &[words],
        );
    }
    let mut tensors = one("lora_unet_fc.lora_down.weight");
    tensors.extend(one("lora_unet_fc.lora_up.weight"));
    tensors.extend(one("lora_unet_fc.dora_scale"));
    refused(
        import(case.file(tensors.clone()), case.adapter(), &options),
        &["LyCORIS' DoRA"],
    );
    tensors.pop();
    tensors[0].1 = (&tensors[0].1 / 0.0)?;
    refused(
        import(case.file(tensors), case.adapter(), &options),
        &["not finite"],
    );
    let none = tempfile::tempdir()?;
    refused(
        import(none.path(), case.adapter(), &options),
        &["holds no adapters.safetensors"],
    );
    assert!(!case.adapter().exists());
    for fixture in ["linear_head", "linear_bias_all"] {
        let adapter = Fixture::new(fixture).adapter();
        let result = export(
            adapter,
            case.dir.path().join("x"),
            Format::Kohya,
            &Options::new(),
        );
        refused(result, &["the format cannot hold"]);
    }
    Ok(())
}

/// A file of another tool in PEFT's place says what it is.
#[test]
fn a_foreign_file_in_pefts_place() -> Result {
    let case = Elsewhere::new("linear");
    let mut files = Files::read(&case.fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        let kohya = key.replace("base_model.model.", "lora_unet_");
        let kohya = kohya
            .replace("lora_A", "lora_down")
            .replace("lora_B", "lora_up");
        files.rename(&key, &kohya);
    }
    files.write(case.dir.path());
    let words = ["the keys are those of kohya: peft::import::import converts the file"];
    refused(
        Mlp::new(&case.fixture.base).with_adapter(case.dir.path()),
        &words,
    );
    let out = case.dir.path().join("out.safetensors");
    refused(
        lora::peft::merge_checkpoint(case.base(), case.dir.path(), out),
        &words,
    );
    Ok(())
}
