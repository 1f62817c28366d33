//! The main job, on a model and images small enough for a test.

use crate::common::{checkpoint, config, folder, input, message, model, snapshot};
use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::Module;
use clap::Parser;
use image::{Rgb, RgbImage};
use lora::models::convnext::ConvNext;
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_examples::agreement::Agreement;
use lora_examples::checkpoint::Checkpoint;
use lora_examples::finetune::{Job, Options, run, write_picture};
use lora_examples::images::{Dataset, Image, Input, read_folder};
use lora_examples::output::size_on_disk;
use lora_examples::rank;
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
    let data = read_folder(&folder(dir.path(), &["dark", "light"], 8)?, 32)?.images;
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
    assert_eq!(names.len(), 5, "{names:?}");
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
    assert!(error.contains("there is no such folder"), "{error}");
    let error = wrong(&|options| options.checkpoint = Some(missing.clone()));
    assert!(error.contains("there is no checkpoint"), "{error}");
    let error = wrong(&|options| options.lora.target_modules = vec!["fc9".into()]);
    assert!(error.contains("`fc9` matches nothing"), "{error}");
    let error = wrong(&|options| options.lora.rank = 1000);
    assert!(
        error.starts_with("--rank is 1000, above the smaller side of every"),
        "{error}"
    );
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
    assert!(
        error.contains("there is no file beside it that says what images it wants"),
        "{error}"
    );
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
    assert_eq!(opened.model(None, 0)?.config, config());
    assert_eq!(opened.input, input());
    let images = Tensor::ones((1, 1, 32, 32), candle_core::DType::F32, &Device::Cpu)?;
    let normal = opened.input.normalize(&images)?;
    assert_eq!(normal.flatten_all()?.to_vec1::<f32>()?, [1.0; 32 * 32]);
    let logits = |model: &ConvNext| -> Result<Vec<f32>> {
        Ok(model.forward(&normal)?.flatten_all()?.to_vec1()?)
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
fn the_same_seed_drops_the_same_inputs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let base = checkpoint(dir.path())?;
    let data = folder(dir.path(), &["dark", "light"], 4)?;
    let adapter = |name: &str, seed: u64, dropout: f64| -> Result<Vec<u8>> {
        let output = dir.path().join(name);
        let mut options = options(&base, &data, &output);
        (options.seed, options.dropout) = (seed, dropout);
        run(&options)?;
        Ok(fs::read(output.join("adapter/adapter_model.safetensors"))?)
    };
    let first = adapter("first", 3, 0.5)?;
    assert!(first == adapter("second", 3, 0.5)?, "two runs differ");
    assert!(first != adapter("without", 3, 0.0)?, "nothing was dropped");
    assert!(
        first != adapter("other", 4, 0.5)?,
        "the seed is of no effect"
    );
    Ok(())
}

#[test]
fn colour_reaches_a_model_of_grey_images() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let base = checkpoint(dir.path())?;
    // Red and blue of the same luma: grey they are the same.
    let (red, blue) = (Rgb([66, 0, 0]), Rgb([0, 0, 194]));
    for (class, colour) in [("dark", red), ("light", blue)] {
        fs::create_dir_all(dir.path().join("photos").join(class))?;
        for index in 0..8 {
            let file = dir.path().join(format!("photos/{class}/{index}.png"));
            RgbImage::from_pixel(40, 40, colour).save(file)?;
        }
    }
    let data = dir.path().join("photos");
    let job = Job::read(&base, &data, 0)?;
    assert!(job.widened && !job.fresh);
    assert_eq!(job.input.input_size, [3, 32, 32]);
    assert_eq!(job.in_full().collect::<Vec<_>>(), ["stem.0"]);

    // At first the wide model sees the luma that the narrow one sees.
    let narrow = Checkpoint::open(&base)?.model(None, 0)?.model;
    let forward = |model: &ConvNext, input: &Input, images: Tensor| -> Result<Vec<f32>> {
        let logits = model.forward(&input.normalize(&images)?)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    };
    let pixels = (0..3 * 32 * 32).map(|index| (index * 37 % 101) as f32 / 100.0);
    let colour = Tensor::from_iter(pixels, &Device::Cpu)?.reshape((1, 3, 32, 32))?;
    let weights = Tensor::new(&[0.2126f32, 0.7152, 0.0722], &Device::Cpu)?;
    let luma = colour.broadcast_mul(&weights.reshape((1, 3, 1, 1))?)?;
    let wide = forward(&job.base, &job.input, colour)?;
    let grey = forward(&narrow, &input(), luma.sum_keepdim(1)?)?;
    for (wide, grey) in wide.iter().zip(&grey) {
        assert!((wide - grey).abs() < 1e-5, "{wide} {grey}");
    }

    let mut options = options(&base, &data, &dir.path().join("out"));
    (options.epochs, options.lr, options.augment) = (20, 0.02, 0.0);
    options.train_classifier = true;
    let report = run(&options)?;
    assert_eq!((report.before, report.after), (Some(0.5), 1.0));
    // Beside the adapters a stem of 4 x 3 x 4 x 4 weights and 4 biases, and the classifier.
    let adapters = 2 * 2 * (2 * (4 + 16) + 2 * (8 + 32));
    assert_eq!(report.trainable, adapters + 4 * 3 * 16 + 4 + 2 * 8 + 2);
    let merged = Checkpoint::open(&dir.path().join("out/merged.safetensors"))?;
    let config = merged.model(None, 0)?.config;
    assert_eq!((config.in_chans, merged.input.mean.len()), (3, 3));
    Ok(())
}

#[test]
fn targets_are_called_as_in_peft() -> Result<()> {
    let parsed = |args: &[&str]| -> Result<LoraConfig> {
        let line = ["finetune"].iter().chain(args);
        Ok(Options::try_parse_from(line)?.config([]))
    };
    let plain = parsed(&[])?;
    assert_eq!((plain.rank, plain.alpha), (8, 16.0));
    assert_eq!(plain.train_bias, TrainBias::All);
    assert!(plain.target_modules.is_none() && plain.modules_to_save.is_empty());
    for flag in ["--target-modules", "--target"] {
        let targets = |value| -> Result<_> { Ok(parsed(&[flag, value])?.target_modules) };
        assert_eq!(targets("all-linear")?, Some("all-linear".into()));
        assert_eq!(targets("fc1,mlp.fc2")?, Some(["fc1", "mlp.fc2"].into()));
    }
    assert_eq!(
        parsed(&["--target-regex", ".*fc1"])?.target_modules,
        Some(".*fc1".into())
    );
    for word in ["lora_only", "lora-only"] {
        assert_eq!(parsed(&["--bias", word])?.train_bias, TrainBias::LoraOnly);
    }
    for flag in ["--train-classifier", "--train-head"] {
        assert_eq!(parsed(&[flag])?.modules_to_save, ["head.fc"]);
    }

    // All linear layers: those of the four MLPs and the classifier.
    let all = parsed(&["--target-modules", "all-linear"])?;
    let summary = model(&config())?.to_lora(&all)?.summary();
    let adapted = summary.rows.iter().filter(|row| row.rank.is_some());
    assert_eq!(adapted.count(), 9);
    Ok(())
}

#[test]
fn a_rank_that_is_of_no_use_is_told() -> Result<()> {
    let check = |rank| rank::check::<ConvNext>(&config(), &LoraConfig::new(rank));
    check(4)?;
    check(8)?;
    // Above the smaller side of four of the eight weights, of which the summary tells.
    let summary = model(&config())?.to_lora(&LoraConfig::new(5))?.summary();
    let notes = summary.to_string();
    let note = "note: a rank above the smaller side of a weight makes the adapter larger, but it can \
                express no more: `stages.0.blocks.0.mlp.fc1` (5 > 4), \
                `stages.0.blocks.0.mlp.fc2` (5 > 4), `stages.1.blocks.0.mlp.fc1` (5 > 4), \
                `stages.1.blocks.0.mlp.fc2` (5 > 4)";
    assert!(notes.lines().any(|line| line == note), "{notes}");
    let error = message(check(usize::MAX));
    assert!(
        error.contains("it must be at most 8: stages.0.blocks.0.mlp.fc1 (4), "),
        "{error}"
    );
    Ok(())
}

#[test]
fn the_picture_shows_right_and_wrong() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut data = Dataset::new(vec!["dark".into(), "light".into()], 8);
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
