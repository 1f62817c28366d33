//! The main job, on a model and images small enough for a test.

mod common;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Parser;
use common::{checkpoint, config, folder, input, message, model, snapshot};
use lora::{LoraConfig, LoraModel};
use lora_examples::checkpoint::Checkpoint;
use lora_examples::finetune::{Agreement, Options, Output, run, size_on_disk, write_picture};
use lora_examples::images::{Dataset, Image, read_folder};
use lora_examples::training::{Recipe, accuracy, predictions, train};
use std::fs;
use std::path::Path;

/// Options for a run of a few steps.
fn options(checkpoint: &Path, data: &Path, output: &Path) -> Options {
    let paths = [checkpoint, data, output].map(|path| path.display().to_string());
    let [checkpoint, data, output] = &paths;
    let line = [
        "finetune",
        "--checkpoint",
        checkpoint,
        "--data",
        data,
        "--output",
        output,
        "--epochs",
        "2",
        "--batch",
        "4",
        "--rank",
        "2",
        "--bias",
        "none",
    ];
    Options::parse_from(line)
}

#[test]
fn training_lowers_the_loss() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = read_folder(&folder(dir.path(), &["dark", "light"], 8)?, 1, 32)?;
    let lora = LoraConfig::new(4).modules_to_save(["head.fc"]).seed(0);
    let mut model = model(&config())?.to_lora(&lora)?;
    let recipe = Recipe {
        epochs: 10,
        batch: 8,
        lr: 0.02,
        weight_decay: 0.0,
        augment: 0.0,
        seed: 0,
    };
    let trained = train(&mut model, &data, &input(), &recipe)?;
    assert_eq!((trained.steps, trained.losses.len()), (20, 10));
    let (first, last) = (trained.losses[0], trained.losses[9]);
    assert!(last < 0.5 * first, "{:?}", trained.losses);
    let none = Recipe {
        epochs: 0,
        ..recipe
    };
    assert!(message(train(&mut model, &data, &input(), &none)).contains("nothing to train"));
    Ok(())
}

#[test]
fn the_job_with_classes_that_the_model_knows() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let base = checkpoint(dir.path())?;
    let data = folder(dir.path(), &["dark", "light"], 8)?;
    let output = dir.path().join("out/run");
    let report = run(&options(&base, &data, &output))?;
    assert_eq!((report.held_out, report.reloaded.same), (4, 4));
    assert!(report.before.is_some());
    // Rank 2 on an MLP from 4 to 16 and back, and on one from 8 to 32, two of each.
    assert_eq!(report.trainable, 2 * 2 * (2 * (4 + 16) + 2 * (8 + 32)));
    assert_eq!(report.reloaded.difference, 0.0);
    for agreement in [&report.merged, &report.base] {
        assert_eq!((agreement.same, agreement.of), (4, 4));
        assert!(agreement.difference < 1e-5);
    }
    let names: Vec<_> = fs::read_dir(&output)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(report.saved.len(), 4);
    assert_eq!(report.adapter_bytes, size_on_disk(&output.join("adapter"))?);

    // The merged model is a checkpoint: it starts where the first run ended.
    let merged = output.join("merged.safetensors");
    let again = run(&options(&merged, &data, &dir.path().join("again")))?;
    assert_eq!(again.before, Some(report.after));
    let text = again.to_string();
    assert!(
        text.contains("accuracy before") && text.contains("of the parameters"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_job_with_new_classes_has_a_fresh_head() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let base = checkpoint(dir.path())?;
    let data = folder(dir.path(), &["x", "y", "z"], 4)?;
    let output = dir.path().join("out");
    let report = run(&options(&base, &data, &output))?;
    assert_eq!(report.before, None);
    assert!(!report.to_string().contains("before"));
    // The adapters and a classifier of 3 classes and 8 features.
    assert_eq!(
        report.trainable,
        2 * 2 * (2 * (4 + 16) + 2 * (8 + 32)) + 3 * 8 + 3
    );
    let merged = Checkpoint::open(&output.join("merged.safetensors"))?;
    assert_eq!(merged.input.label_names, ["x", "y", "z"]);
    assert_eq!(merged.model(None, 0)?.config.num_classes, 3);
    Ok(())
}

#[test]
fn bad_input_leaves_earlier_output_intact() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let base = checkpoint(dir.path())?;
    let data = folder(dir.path(), &["dark", "light"], 4)?;
    let output = dir.path().join("out");
    run(&options(&base, &data, &output))?;
    let earlier = snapshot(&output)?;

    let good = options(&base, &data, &output);
    let wrong = |change: &dyn Fn(&mut Options)| {
        let mut options = good.clone();
        change(&mut options);
        message(run(&options))
    };
    let missing = dir.path().join("none");
    let error = wrong(&|options| options.data = Some(missing.clone()));
    assert!(error.contains("there is no folder"), "{error}");
    let error = wrong(&|options| options.checkpoint = Some(missing.clone()));
    assert!(error.contains("there is no checkpoint"), "{error}");
    let error = wrong(&|options| options.rank = 0);
    assert!(error.contains("--rank is 0"), "{error}");
    let error = wrong(&|options| options.dropout = 1.0);
    assert!(error.contains("dropout is 1"), "{error}");
    let error = wrong(&|options| options.lr = f64::NAN);
    assert!(error.contains("--lr is NaN"), "{error}");
    let error = wrong(&|options| options.target = vec!["fc9".into()]);
    assert!(error.contains("`fc9` matches nothing"), "{error}");
    // Fails in the middle of the training.
    let error = wrong(&|options| options.lr = 1e30);
    assert!(error.contains("try a lower --lr"), "{error}");
    fs::write(data.join("dark/0.png"), "hello")?;
    let error = wrong(&|_| {});
    assert!(error.contains("dark"), "{error}");

    assert_eq!(snapshot(&output)?, earlier);
    Ok(())
}

#[test]
fn bad_checkpoints_are_explained() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = checkpoint(dir.path())?;
    let description = path.with_extension("json");
    let text = fs::read_to_string(&description)?;
    let open = |text: &str| -> Result<String> {
        fs::write(&description, text)?;
        Ok(message(
            Checkpoint::open(&path).and_then(|found| found.model(None, 0)),
        ))
    };
    // Another shape than the description says: every weight is listed.
    let error = open(&text.replacen("    \"dims\": [\n      4,", "    \"dims\": [\n      6,", 1))?;
    assert!(
        error.contains("`stem.0.weight` is [4, 1, 4, 4], the model's is [6, 1, 4, 4]"),
        "{error}"
    );
    assert!(
        error.contains("`stages.0.blocks.0.mlp.fc1.weight`"),
        "{error}"
    );
    let error = open(&text.replace("\"convnext\"", "\"resnet50\""))?;
    assert!(error.contains("its architecture is `resnet50`"), "{error}");
    let error = open(&text.replace("      1,\n      32,", "      2,\n      32,"))?;
    assert!(error.contains("2 channels"), "{error}");
    assert!(open("{")?.contains("base.json"));

    fs::remove_file(&description)?;
    let error = message(Checkpoint::open(&path));
    assert!(error.contains("needs its description beside it"), "{error}");
    // timm's name for it.
    fs::write(dir.path().join("config.json"), &text)?;
    assert_eq!(Checkpoint::open(&path)?.input, input());
    fs::write(&path, "hello")?;
    let error = message(Checkpoint::open(&path)?.model(None, 0));
    assert!(error.contains("base.safetensors"), "{error}");
    Ok(())
}

#[test]
fn a_written_checkpoint_is_the_model() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = checkpoint(dir.path())?;
    let opened = Checkpoint::open(&path)?;
    assert_eq!((&opened.config, &opened.input), (&config(), &input()));
    let images = Tensor::ones((1, 1, 32, 32), candle_core::DType::F32, &Device::Cpu)?;
    let normal = opened.input.normalize(&images)?;
    assert_eq!(normal.flatten_all()?.to_vec1::<f32>()?, [1.0; 32 * 32]);
    let logits = |model: &lora::models::convnext::ConvNext| -> Result<Vec<f32>> {
        Ok(candle_nn::Module::forward(model, &normal)?
            .flatten_all()?
            .to_vec1()?)
    };
    assert_eq!(
        logits(&opened.model(None, 0)?.model)?,
        logits(&model(&config())?)?
    );
    assert_eq!(
        opened.model(Some(5), 0)?.fresh,
        ["head.fc.weight", "head.fc.bias"]
    );
    Ok(())
}

#[test]
fn output_appears_whole_or_not_at_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("deep/out");
    // Nothing published: no trace.
    drop(Output::new(&place)?);
    assert!(!dir.path().join("deep").exists());

    let publish = |texts: [&str; 2]| -> Result<_> {
        let output = Output::new(&place)?;
        for (name, text) in ["a", "b"].into_iter().zip(texts) {
            if !text.is_empty() {
                fs::write(output.draft(name), text)?;
            }
        }
        output.publish(&["a", "b"])
    };
    let content = || -> Result<Vec<String>> {
        let files = snapshot(&place)?.into_iter();
        files
            .map(|(_, bytes)| Ok(String::from_utf8(bytes)?))
            .collect()
    };
    assert_eq!(publish(["1", "2"])?, [place.join("a"), place.join("b")]);
    fs::write(place.join("c"), "not ours")?;
    publish(["3", "4"])?;
    assert_eq!(content()?, ["3", "4", "not ours"]);
    // The second result is missing: the first goes back.
    assert!(message(publish(["5", ""])).contains("cannot put"));
    assert_eq!(content()?, ["3", "4", "not ours"]);

    // A file where the folder should be.
    let error = message(Output::new(&place.join("a")));
    assert!(error.contains("cannot write to output folder"), "{error}");
    assert_eq!(content()?, ["3", "4", "not ours"]);
    Ok(())
}

#[test]
fn the_picture_shows_right_and_wrong() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut data = Dataset::new(vec!["dark".into(), "light".into()], 1, 8);
    for index in 0..4 {
        let image = Image {
            channels: 1,
            width: 8,
            height: 8,
            values: vec![(61 + index) as f32 / 255.0; 64],
        };
        data.push(index / 2, &image);
    }
    let path = dir.path().join("picture.png");
    let draw = |before: Option<&[u32]>, after: &[u32]| -> Result<image::RgbImage> {
        write_picture(&path, &data, before, after)?;
        Ok(image::open(&path)?.to_rgb8())
    };
    let count = |image: &image::RgbImage, colour: [u8; 3]| {
        image.pixels().filter(|pixel| pixel.0 == colour).count()
    };
    let (green, red) = ([20, 130, 50], [200, 30, 30]);
    let right = draw(None, &[0, 0, 1, 1])?;
    assert_eq!(right.dimensions(), (830, 142));
    assert!(count(&right, green) > 0);
    assert_eq!(count(&right, red), 0);
    // The images themselves: four squares of 72 pixels, each of its own grey.
    assert_eq!(count(&right, [61; 3]), 72 * 72);
    let both = draw(Some(&[1, 1, 0, 0]), &[0, 0, 1, 1])?;
    assert!(count(&both, green) > 0 && count(&both, red) > 0);
    Ok(())
}

#[test]
fn agreement_and_accuracy_count() -> Result<()> {
    let a = Tensor::new(&[[0.0f32, 1.0], [2.0, 1.0], [0.0, 3.0]], &Device::Cpu)?;
    let b = Tensor::new(&[[0.0f32, 1.5], [0.0, 1.0], [0.0, 3.0]], &Device::Cpu)?;
    let agreement = Agreement::of(&a, &b)?;
    assert_eq!(
        (agreement.same, agreement.of, agreement.difference),
        (2, 3, 2.0)
    );
    assert_eq!(predictions(&a)?, [1, 0, 1]);
    assert_eq!(accuracy(&[1, 0, 1, 1], &[1, 0, 0, 1]), 0.75);
    Ok(())
}
