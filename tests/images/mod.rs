//! Images: resizing, splitting, changing; folders; what models want of their images.

mod folders;
mod input;

use candle_core::{Device, Tensor};
use lora::Result;
use lora::images::{Batch, Dataset, Image, augment};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// The error of a result, as a program prints it.
fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

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
    let pixels = (0..3 * 16 * 16).map(|index| (index * 37 % 101) as f32 / 100.0);
    let batch = Batch {
        images: Tensor::from_iter(pixels, &Device::Cpu)?.reshape((3, 1, 16, 16))?,
        labels: Tensor::new(&[0u32, 1, 2], &Device::Cpu)?,
    };
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
