//! Reading folders of images: what is read, what is skipped, what is refused.

use super::message;
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use lora::images::{Dataset, Folder, Image, read_folder, read_folder_with};
use std::fs;
use std::path::{Path, PathBuf};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const BLUE: Rgb<u8> = Rgb([0, 0, 255]);
const RED: Rgb<u8> = Rgb([255, 0, 0]);

/// Writes an image of one colour into a folder of its own.
fn picture(path: &Path, colour: Rgb<u8>) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap())?;
    RgbImage::from_pixel(9, 5, colour).save(path)?;
    Ok(())
}

/// A folder of `count` images a class.
fn folder(dir: &Path, classes: &[&str], count: u8) -> Result<PathBuf> {
    let dir = dir.join(classes.join("-"));
    for class in classes {
        for index in 0..count {
            picture(&dir.join(class).join(format!("{index}.png")), RED)?;
        }
    }
    Ok(dir)
}

/// Every image's first value of each channel.
fn colours(images: &Dataset) -> Vec<Vec<f32>> {
    let colours = (0..images.len()).map(|index| images.image(index).values);
    let each = |values: Vec<f32>| values.chunks(16).map(|channel| channel[0]).collect();
    colours.map(each).collect()
}

#[test]
fn colour_is_kept_where_an_image_has_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let grey = Rgb([51; 3]);
    for (name, colour) in [
        ("blue/1.png", BLUE),
        ("blue/2.webp", BLUE),
        ("grey/1.png", grey),
        ("grey/2.JPG", grey),
    ] {
        picture(&dir.path().join(name), colour)?;
    }
    let images = read_folder(dir.path(), 4)?.images;
    assert_eq!(images.classes, ["blue", "grey"]);
    assert_eq!(images.labels, [0, 0, 1, 1]);
    assert_eq!(images.channels(), 3);
    let (blue, grey) = (vec![0.0, 0.0, 1.0], vec![0.2; 3]);
    assert_eq!(colours(&images), [blue.clone(), blue, grey.clone(), grey]);
    assert_eq!(images.batch(&[0, 2])?.images.dims(), [2, 3, 4, 4]);

    for number in [1, 2] {
        let place = dir.path().join(format!("blue/{number}.png"));
        GrayImage::from_pixel(9, 5, Luma([102])).save(place)?;
    }
    fs::remove_file(dir.path().join("blue/2.webp"))?;
    let images = read_folder(dir.path(), 4)?.images;
    assert_eq!(images.channels(), 1);
    let values = [[0.4], [0.4], [0.2], [0.2]];
    assert_eq!(colours(&images), values);
    let three = images.widened(3);
    assert_eq!(colours(&three)[0], [0.4; 3]);
    Ok(())
}

#[test]
fn what_is_transparent_becomes_white_and_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["a/1.png", "a/2.png", "b/1.png", "b/2.png"] {
        picture(&dir.path().join(name), Rgb([0; 3]))?;
    }
    // Black all over: only the alpha channel tells the left half from the right one.
    let half = |x, _| Rgba([0, 0, 0, if x < 4 { 0 } else { 255 }]);
    RgbaImage::from_fn(8, 8, half).save(dir.path().join("b/1.png"))?;
    // A third of red on white.
    RgbaImage::from_pixel(8, 8, Rgba([255, 0, 0, 85])).save(dir.path().join("b/2.png"))?;
    let Folder { images, notes, .. } = read_folder(dir.path(), 8)?;
    assert_eq!(
        notes,
        ["2 with transparent parts, which became white: b/1.png, b/2.png"]
    );
    assert_eq!(
        images.image(2).values[..8],
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    );
    let third = images.image(3).values;
    assert_eq!(
        [third[0], third[64], third[128]],
        [1.0, 170.0 / 255.0, 170.0 / 255.0]
    );
    Ok(())
}

#[test]
fn folders_inside_a_class_are_read_and_the_rest_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in [
        "a/1.png",
        "a/more/2.png",
        "a/more/deep/3.png",
        "a/.cache/4.png",
        "b/1.png",
        "b/2.png",
        "top.png",
    ] {
        picture(&dir.path().join(name), BLUE)?;
    }
    fs::write(dir.path().join("a/more/notes.txt"), "not an image")?;
    fs::write(dir.path().join("b/3.heic"), "an image, but not for us")?;
    let Folder { images, notes, .. } = read_folder(dir.path(), 8)?;
    assert_eq!((images.count(0), images.count(1)), (3, 2));
    assert_eq!(
        notes,
        [
            "4 skipped, which are not images (PNG, JPEG, WebP) in the folder of a class: top.png, \
             a/.cache, a/more/notes.txt, b/3.heic"
        ]
    );
    for number in 0..30 {
        fs::write(dir.path().join(format!("b/{number:02}.txt")), "")?;
    }
    let notes = read_folder(dir.path(), 8)?.notes.join("");
    assert!(notes.starts_with("34 skipped"), "{notes}");
    assert!(
        notes.ends_with("b/15.txt, b/16.txt, and 14 more"),
        "{notes}"
    );
    Ok(())
}

#[test]
fn a_folder_may_keep_apart_what_is_held_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for held_out in ["val", "valid", "Validation", "test"] {
        let dir = dir.path().join(held_out);
        for name in ["train/a/1.png", "train/b/1.png", "train/b/2.png"] {
            picture(&dir.join(name), BLUE)?;
        }
        for name in ["a/1.png", "b/1.png"] {
            picture(&dir.join(held_out).join(name), RED)?;
        }
        fs::write(dir.join("labels.csv"), "")?;
        let folder = read_folder(&dir, 4)?;
        let notes = folder.notes.join(" ");
        assert!(notes.contains(&format!("held out: {held_out}")), "{notes}");
        assert!(notes.ends_with(": labels.csv"), "{notes}");
        // Whatever part is asked for, the folder says.
        let (training, apart) = folder.split(0.5);
        assert_eq!((training.len(), apart.len()), (3, 2));
        assert_eq!(training.labels, [0, 1, 1]);
        assert_eq!(apart.labels, [0, 1]);
        assert_eq!(colours(&apart), [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]);
    }

    // Both: the first is held out, the other named.
    let dir = dir.path().join("val");
    picture(&dir.join("test/a/1.png"), RED)?;
    let notes = read_folder(&dir, 4)?.notes.join(" ");
    assert!(notes.contains("held out: val"), "{notes}");
    assert!(notes.ends_with(": labels.csv, test"), "{notes}");
    picture(&dir.join("val/c/1.png"), RED)?;
    let error = message(read_folder(&dir, 4));
    assert!(
        error.ends_with("val: has folders that `train` beside it lacks: c"),
        "{error}"
    );
    picture(&dir.join("train/c/1.png"), RED)?;
    picture(&dir.join("train/d/1.png"), RED)?;
    let error = message(read_folder(&dir, 4));
    assert!(error.ends_with("val: lacks a folder for: d"), "{error}");

    // Two classes that happen to have these names.
    let dir = dir.join("classes");
    for name in ["train/1.png", "train/2.png", "test/1.png", "test/2.png"] {
        picture(&dir.join(name), RED)?;
    }
    let folder = read_folder(&dir, 4)?;
    assert_eq!(folder.images.classes, ["test", "train"]);
    assert!(folder.held_out.is_none());
    Ok(())
}

#[test]
fn bad_folders_are_explained() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let read = |name: &str| message(read_folder(dir.path().join(name), 8));
    assert!(read("none").contains("none: there is no such folder"));
    fs::create_dir(dir.path().join("empty"))?;
    assert!(read("empty").contains("has no subfolders"));
    folder(dir.path(), &["one"], 3)?;
    assert!(read("one").contains("one class only, `one`"));
    folder(dir.path(), &["few", "fewer"], 1)?;
    let error = read("few-fewer");
    assert!(
        error.contains("few: has 1 PNG, JPEG or WebP image(s): a class needs at least 2, "),
        "{error}"
    );
    Ok(())
}

#[test]
fn every_damaged_image_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let images = folder(dir.path(), &["a", "b"], 3)?;
    let damage = |path: &Path, bytes: &[u8]| -> Result<String> {
        fs::write(path, bytes)?;
        Ok(message(read_folder(&images, 8)))
    };
    let png = images.join("b").join("1.png");
    let bytes = fs::read(&png)?;
    let error = damage(&png, &bytes[..bytes.len() / 2])?;
    let named = format!(
        "{}: cannot read image {}: ",
        images.display(),
        png.display()
    );
    assert!(error.starts_with(&named), "{error}");
    assert!(damage(&png, b"hello")?.starts_with(&named));
    // A header that promises 40 GB.
    let error = damage(&png, &huge_png())?;
    assert!(
        error.starts_with(&named) && error.contains("imit"),
        "{error}"
    );

    // Two at once.
    let jpeg = images.join("a").join("1.jpg");
    let error = damage(&jpeg, b"")?;
    assert_eq!(
        error.matches("\n  - cannot read image ").count(),
        2,
        "{error}"
    );
    assert!(error.contains(&format!("{}: ", jpeg.display())), "{error}");
    assert!(error.contains(&format!("{}: ", png.display())), "{error}");
    Ok(())
}

/// A PNG of 100,000 x 100,000 pixels, but for the pixels.
fn huge_png() -> Vec<u8> {
    let side = 100_000u32.to_be_bytes();
    let header = [b"IHDR", &side[..], &side[..], &[8, 6, 0, 0, 0]].concat();
    let sum = crc32fast::hash(&header).to_be_bytes();
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(header);
    bytes.extend(sum);
    bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    bytes
}

#[test]
fn files_that_end_in_the_middle_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let noisy = |x: u32, y: u32| {
        Rgb([
            (x * 37 % 251) as u8,
            (y * 91 % 241) as u8,
            (x * y % 239) as u8,
        ])
    };
    for name in ["image.jpg", "image.png", "image.webp"] {
        let path = dir.path().join(name);
        RgbImage::from_fn(64, 64, noisy).save(&path)?;
        let bytes = fs::read(&path)?;
        assert_eq!(Image::open(&path)?.channels, 3, "{name}");
        // Whole, with something behind it: as cameras and phones write.
        fs::write(&path, [&bytes, &b"more"[..]].concat())?;
        Image::open(&path)?;
        for part in [10, 50, 90, 99] {
            fs::write(&path, &bytes[..bytes.len() * part / 100])?;
            let error = message(Image::open(&path));
            assert!(error.contains(name), "{error}");
        }
    }
    Ok(())
}

#[test]
fn an_image_is_turned_as_its_camera_notes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("1.jpg");
    // Light above, dark below.
    let halves = |_, y| Luma([if y < 8 { 255u8 } else { 0 }]);
    GrayImage::from_fn(16, 16, halves).save(&path)?;
    let upright = Image::open(&path)?.values;
    assert!(upright[0] > 0.9 && upright[255] < 0.1);
    // EXIF with one entry: orientation 3, upside down.
    let exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0";
    let bytes = fs::read(&path)?;
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let turned = [&bytes[..2], b"\xff\xe1", &length, exif, &bytes[2..]].concat();
    fs::write(&path, turned)?;
    let values = Image::open(&path)?.values;
    assert!(values[0] < 0.1 && values[255] > 0.9);
    Ok(())
}

#[test]
fn reading_ends_when_it_is_told_to() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let images = folder(dir.path(), &["a", "b"], 3)?;
    let mut left = 4;
    let read = read_folder_with(&images, 8, || {
        left -= 1;
        match left {
            0 => Err(lora::Error::Data(vec!["enough".into()])),
            _ => Ok(()),
        }
    });
    assert_eq!(message(read), "the data: enough");
    Ok(())
}
