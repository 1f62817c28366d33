//! Contact sheets.

use crate::common::message;
use anyhow::Result;
use image::Luma;
use lora_examples::bundled::bundled;
use lora_examples::images::read_sheets;
use std::fs;

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
