//! Resizing, splitting and changing images.

use crate::common::message;
use anyhow::Result;
use image::Luma;
use lora_examples::bundled::bundled;
use lora_examples::images::{Dataset, Image, augment, read_sheets};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use std::fs;

fn row(values: &[f32]) -> Image {
    Image {
        channels: 1,
        width: values.len(),
        height: 1,
        values: values.to_vec(),
    }
}

fn assert_close(values: &[f32], expected: &[f32]) {
    assert_eq!(values.len(), expected.len());
    for (value, expected) in values.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-6, "{values:?}");
    }
}

#[test]
fn resize_is_bilinear_and_averages_where_it_shrinks() {
    assert_close(
        &row(&[0.0, 1.0]).resize(4, 1).values,
        &[0.0, 0.25, 0.75, 1.0],
    );
    // Weights 0.75, 0.75, 0.25 of the first three pixels, by their sum 1.75.
    let shrunk = row(&[0.0, 0.25, 0.5, 0.75]).resize(2, 1);
    assert_close(&shrunk.values, &[0.3125 / 1.75, 1.0 / 1.75]);
    assert_close(&row(&[0.3, 0.8]).resize(2, 1).values, &[0.3, 0.8]);
    let column = Image {
        width: 1,
        height: 2,
        ..row(&[0.0, 1.0])
    };
    assert_close(&column.resize(1, 4).values, &[0.0, 0.25, 0.75, 1.0]);
}

#[test]
fn fit_keeps_the_middle_square() {
    let wide = row(&[0.1, 0.2, 0.3, 0.4, 0.5]);
    assert_close(&wide.fit(1).values, &[0.3]);
    assert_eq!((wide.fit(7).width, wide.fit(7).height), (7, 7));
}

#[test]
fn crop_takes_every_channel_and_stays_inside() -> Result<()> {
    let image = Image {
        channels: 2,
        width: 2,
        height: 2,
        values: (0..8).map(|value| value as f32).collect(),
    };
    assert_eq!(image.crop(1, 0, 1, 2)?.values, [1.0, 3.0, 5.0, 7.0]);
    assert!(message(image.crop(1, 0, 2, 1)).contains("is not inside an image of 2x2"));
    Ok(())
}

#[test]
fn the_sheets_hold_what_their_readme_says() -> Result<()> {
    let mnist = read_sheets(&bundled("mnist")?, 28)?;
    assert_eq!(mnist.len(), 4000);
    assert!((0..10).all(|class| mnist.count(class) == 400));

    let digits = read_sheets(&bundled("optdigits")?, 8)?;
    assert_eq!(digits.len(), 1797);
    let counts: Vec<usize> = (0..10).map(|class| digits.count(class)).collect();
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    // The sum of the source's first image, whose values go to 16, is 294.
    let image = digits.image(0);
    let sum: f32 = image
        .values
        .iter()
        .map(|value| (value * 16.0).round())
        .sum();
    assert_eq!(sum, 294.0);
    // And its second row.
    let row: Vec<f32> = image.values[8..16]
        .iter()
        .map(|v| (v * 16.0).round())
        .collect();
    assert_eq!(row, [0.0, 0.0, 13.0, 15.0, 10.0, 15.0, 5.0, 0.0]);
    Ok(())
}

#[test]
fn damaged_sheets_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let read = || message(read_sheets(dir.path(), 8));
    assert!(read().contains("sheet.json"));
    fs::write(
        dir.path().join("sheet.json"),
        r#"{"tile": 8, "columns": 2}"#,
    )?;
    assert!(read().contains("counts"), "{}", read());
    let sheet = r#"{"tile": 8, "columns": 2, "counts": [3]}"#;
    fs::write(dir.path().join("sheet.json"), sheet)?;
    image::GrayImage::from_pixel(16, 8, Luma([9])).save(dir.path().join("0.png"))?;
    assert!(read().contains("lacks tile 2"), "{}", read());
    Ok(())
}

#[test]
fn the_last_images_of_each_class_are_held_out() -> Result<()> {
    let mut data = Dataset::new(vec!["a".into(), "b".into()], 1);
    for index in 0..8 {
        let class = usize::from(index >= 6);
        data.push(class, &row(&[index as f32 / 255.0]));
    }
    let (first, last) = data.split(0.25);
    let bytes = |data: &Dataset| -> Vec<u8> {
        (0..data.len())
            .map(|index| data.image(index).to_bytes()[0])
            .collect()
    };
    // A quarter of 6 is 2 after rounding, a quarter of 2 at least 1.
    assert_eq!(
        (bytes(&first), bytes(&last)),
        (vec![0, 1, 2, 3, 6], vec![4, 5, 7])
    );
    assert_eq!(
        (&first.labels[..], &last.labels[..]),
        (&[0, 0, 0, 0, 1][..], &[0, 0, 1][..])
    );
    Ok(())
}

#[test]
fn a_batch_has_values_from_0_to_1() -> Result<()> {
    let mut data = Dataset::new(vec!["a".into(), "b".into()], 1);
    data.push(0, &row(&[1.0]));
    data.push(1, &row(&[0.2]));
    let batch = data.batch(&[1, 0])?;
    assert_eq!(batch.images.dims(), [2, 1, 1, 1]);
    assert_close(&batch.images.flatten_all()?.to_vec1()?, &[0.2, 1.0]);
    assert_eq!(batch.labels.to_vec1::<u32>()?, [1, 0]);
    Ok(())
}

#[test]
fn classes_are_numbered_as_the_model_numbers_them() {
    let mut data = Dataset::new(vec!["b".into(), "c".into()], 1);
    data.push(0, &row(&[0.0]));
    data.push(1, &row(&[0.0]));
    let known = ["a", "c", "b"].map(String::from);
    let labels = data.renumbered(&known).map(|data| data.labels);
    assert_eq!(labels, Some(vec![2, 1]));
    assert!(data.renumbered(&known[..2]).is_none());
}

#[test]
fn augmentation_follows_its_seed() -> Result<()> {
    let data = read_sheets(&bundled("optdigits")?, 16)?;
    let batch = data.batch(&[0, 1, 2])?;
    let changed = |amount: f64, seed: u64| -> Result<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let changed = augment(&batch, amount, &mut rng)?;
        assert_eq!(changed.images.dims(), batch.images.dims());
        Ok(changed.images.flatten_all()?.to_vec1()?)
    };
    let original: Vec<f32> = batch.images.flatten_all()?.to_vec1()?;
    assert_eq!(changed(0.0, 0)?, original);
    assert_ne!(changed(0.1, 0)?, original);
    assert_eq!(changed(0.1, 0)?, changed(0.1, 0)?);
    assert_ne!(changed(0.1, 0)?, changed(0.1, 1)?);
    assert!(
        changed(0.1, 0)?
            .iter()
            .all(|value| (0.0..=1.0001).contains(value))
    );
    // A change of nearly nothing leaves the image nearly as it is.
    let small = changed(1e-9, 0)?;
    let differences = small.iter().zip(&original).map(|(a, b)| (a - b).abs());
    assert!(differences.fold(0.0, f32::max) < 1e-5);
    Ok(())
}
