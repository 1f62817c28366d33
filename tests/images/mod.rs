//! Images: resizing, splitting, changing; folders; what models want of their images.

mod folders;
mod input;

use candle_core::{Device, Tensor};
use lora::Result;
use lora::images::{Augment, Batch, Dataset, Image, augment};
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

/// An image whose values are all different.
fn ramp(channels: usize, width: usize, height: usize) -> Image {
    let count = channels * width * height;
    Image {
        channels,
        width,
        height,
        values: (0..count)
            .map(|index| index as f32 / count as f32)
            .collect(),
    }
}

#[test]
fn mirrored_images_have_their_pixels_at_the_other_side() {
    let image = ramp(3, 3, 2);
    let pixel =
        |image: &Image, channel: usize, x: usize, y: usize| image.values[(channel * 2 + y) * 3 + x];
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let across = Augment::new().hflip(1.0).image(&image, &mut rng);
    let upside_down = Augment::new().vflip(1.0).image(&image, &mut rng);
    for (channel, x, y) in (0..18).map(|index| (index / 6, index % 3, index / 3 % 2)) {
        let expected = pixel(&image, channel, x, y);
        assert_eq!(pixel(&across, channel, 2 - x, y), expected);
        assert_eq!(pixel(&upside_down, channel, x, 1 - y), expected);
    }
    // A chance is a share of many.
    let augment = Augment::new().hflip(0.25);
    let mirrored = (0..2000).filter(|_| augment.image(&image, &mut rng) != image);
    let mirrored = mirrored.count();
    assert!((430..570).contains(&mirrored), "{mirrored}");
}

#[test]
fn a_cut_is_a_part_of_the_image_at_its_size() {
    // Each part of an even slope is a slope whose length tells the width of the part.
    let image = Image {
        values: (0..64 * 64)
            .map(|index| (index % 64) as f32 / 63.0)
            .collect(),
        ..ramp(1, 64, 64)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let augment = Augment::new().scale([0.25, 0.36]).ratio([1.0, 1.0]);
    let (mut least, mut most, mut left) = (1.0f32, 0.0f32, Vec::new());
    for _ in 0..300 {
        let cut = augment.image(&image, &mut rng);
        assert_eq!((cut.width, cut.height), (64, 64));
        // Rows are alike, and rise by the same each pixel but at the sides.
        let row = &cut.values[..64];
        assert_close(&cut.values[63 * 64..], row);
        let share = (row[40] - row[20]) / 20.0 * 63.0;
        (least, most) = (least.min(share), most.max(share));
        left.push(row[0]);
    }
    assert!(
        (0.49..0.53).contains(&least) && (0.57..0.61).contains(&most),
        "{least} {most}"
    );
    // It may lie anywhere.
    let (first, last) = left
        .iter()
        .fold((1.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
    assert!(first < 0.02 && last > 0.44, "{first} {last}");
    // All of the image is no change, and so is a shape that does not fit: the largest such part.
    let all = Augment::new().scale([1.0, 1.0]).ratio([1.0, 1.0]);
    assert_eq!(all.image(&image, &mut rng), image);
    let flat = Augment::new().scale([1.0, 1.0]).ratio([2.0, 2.0]);
    assert_close(&flat.image(&image, &mut rng).values, &image.values);
}

#[test]
fn jittered_colours_stay_colours() {
    let image = Image {
        values: [[0.8f32; 4], [0.4; 4], [0.2; 4]].concat(),
        ..ramp(3, 2, 2)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let augment = Augment::new().color_jitter(0.5);
    for _ in 0..200 {
        let changed = augment.image(&image, &mut rng);
        assert!(
            changed
                .values
                .iter()
                .all(|value| (0.0..=1.0).contains(value))
        );
        // One colour all over stays one, and red stays the strongest.
        let [red, green, blue] = [0, 4, 8].map(|at| changed.values[at]);
        assert_close(&changed.values[..4], &[red; 4]);
        assert!(
            red >= green && green >= blue && red > blue,
            "{red} {green} {blue}"
        );
    }
    // A grey image has no saturation, and brightness alone moves one value.
    let grey = Image {
        values: vec![0.5; 4],
        ..ramp(1, 2, 2)
    };
    let values: Vec<f32> = (0..200)
        .map(|_| augment.image(&grey, &mut rng).values[0])
        .collect();
    let (least, most) = values
        .iter()
        .fold((1.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
    assert!(
        (0.25..0.27).contains(&least) && (0.73..=0.75).contains(&most),
        "{least} {most}"
    );
}

#[test]
fn changes_depend_on_seed_epoch_and_place_alone() -> Result<()> {
    let mut data = Dataset::new(vec!["all".into()], 8);
    (0..6).for_each(|_| data.push(0, &ramp(1, 8, 8)));
    let augment = Augment::new().scale([0.3, 0.9]).warp(0.1);
    let values = |indices: &[usize], seed: u64, epoch: u64| -> Result<Vec<f32>> {
        let batch = data.augmented(indices, &augment, seed, epoch)?;
        assert_eq!(batch.images.dims(), [indices.len(), 1, 8, 8]);
        Ok(batch.images.flatten_all()?.to_vec1()?)
    };
    let one = values(&[4], 1, 2)?;
    assert_eq!(values(&[0, 4, 5], 1, 2)?[64..128], one);
    for (index, seed, epoch) in [(3, 1, 2), (4, 0, 2), (4, 1, 3)] {
        assert_ne!(values(&[index], seed, epoch)?, one);
    }
    // Without changes it is the batch itself, bit for bit.
    let plain = data.augmented(&[1, 2], &Augment::new(), 1, 2)?.images;
    let batch = data.batch(&[1, 2])?.images;
    assert_eq!(
        plain.flatten_all()?.to_vec1::<f32>()?,
        batch.flatten_all()?.to_vec1::<f32>()?
    );
    let wrong = data.augmented(&[0], &Augment::new().hflip(2.0).ratio([2.0, 1.0]), 0, 0);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "the data:\n  - `hflip` is 2: it must be from 0 to 1\n  - `ratio` is 2, 1: the least width over height, \
         above 0, and the largest are expected"
    );
    Ok(())
}
