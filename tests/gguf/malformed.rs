//! Files that are not what they say.

use lora::peft::{AdapterConfig, GgufOptions, gguf_to_adapter};
use std::fs;

/// A file of these fields and tensors: names, shapes, types, starts.
fn file(
    fields: &[(&str, u32, &[u8])],
    tensors: &[(&str, &[u64], u32, u64)],
    data: usize,
) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((fields.len() as u64).to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
    };
    for (key, kind, value) in fields {
        text(&mut bytes, key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        match kind {
            8 => text(&mut bytes, value),
            _ => bytes.extend(*value),
        }
    }
    for (name, shape, kind, start) in tensors {
        text(&mut bytes, name.as_bytes());
        bytes.extend((shape.len() as u32).to_le_bytes());
        for n in *shape {
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(start.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

const FIELDS: [(&str, u32, &[u8]); 3] = [
    ("general.type", 8, b"adapter"),
    ("adapter.type", 8, b"lora"),
    ("general.architecture", 8, b"qwen2"),
];

#[test]
fn malformed_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        gguf_to_adapter(&path, &out, &GgufOptions::default())
    };
    let (a, b) = ("output.weight.lora_a", "output.weight.lora_b");
    let good = [(a, &[4u64, 2][..], 0, 0), (b, &[2, 3], 0, 32)];
    read(&file(&FIELDS, &good, 64)).unwrap();
    // A missing alpha is a scaling of 1; a trailing dimension of 1 may be absent.
    let config = AdapterConfig::read(&out).unwrap();
    assert_eq!((config.r, config.lora_alpha), (2, 2.0));
    read(&file(&FIELDS, &[(a, &[4], 0, 0), (b, &[1, 3], 0, 32)], 64)).unwrap();
    fs::remove_dir_all(&out).unwrap();

    let max = u64::MAX;
    let with = |key, kind, value| [&FIELDS[..], &[(key, kind, value)]].concat();
    let nested = [[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]; 1000].concat();
    let many = [&0u32.to_le_bytes()[..], &max.to_le_bytes()].concat();
    let words = [&8u32.to_le_bytes()[..], &(max / 8).to_le_bytes()].concat();
    for (bytes, word) in [
        (b"GGUF".to_vec(), "ends within its header"),
        (b"GGML\x03\0\0\0".to_vec(), "is no GGUF file"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (
            [&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat(),
            "fields, more than it can hold",
        ),
        (
            file(&with("general.alignment", 4, &[0; 4]), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.alignment", 4, &[24, 0, 0, 0]), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.alignment", 8, b"32"), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.type", 8, b"x"), &good, 64),
            "`general.type` comes twice",
        ),
        (file(&with("x", 99, b""), &good, 64), "type 99"),
        (
            file(&with("x", 9, &many), &good, 64),
            "more than it can hold",
        ),
        (
            file(&with("x", 9, &words), &good, 64),
            "more than it can hold",
        ),
        (
            file(&with("x", 9, &nested), &good, 64),
            "lists within lists",
        ),
        (
            file(
                &with("adapter.lora.alpha", 6, &f32::NAN.to_le_bytes()),
                &good,
                64,
            ),
            "alpha",
        ),
        (
            file(&with("adapter.lora.alpha", 8, b"2"), &good, 64),
            "alpha",
        ),
        (
            file(
                &with("adapter.alora.invocation_tokens", 4, &[0; 4]),
                &good,
                64,
            ),
            "activated LoRA",
        ),
        (file(&FIELDS[..2], &good, 64), "architecture"),
        (file(&FIELDS[1..], &good, 64), "no LoRA adapter"),
        (file(&FIELDS, &[], 64), "holds no layer"),
        (file(&FIELDS, &good, 40), "ends outside the file"),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, 0)], 64),
            "lies in the data",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, 8)], 64),
            "no multiple of 32",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, max - 31)], 64),
            "ends outside the file",
        ),
        (file(&FIELDS, &[good[0], good[0]], 64), "comes twice"),
        (file(&FIELDS, &good[..1], 64), "has A, but no B"),
        (
            file(&FIELDS, &[good[0], (b, &[3, 2], 0, 32)], 64),
            "rank 2 in A, 3 in B",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3, 2], 0, 32)], 64),
            "no matrix",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 0], 0, 32)], 64),
            "no matrix",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2; 5], 0, 32)], 64),
            "5 dimensions",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[], 0, 32)], 64),
            "0 dimensions",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[max, max], 0, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[1 << 40, 1], 0, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 8, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 12, 32)], 64),
            "data type 12",
        ),
        (
            file(&FIELDS, &[good[0], ("../x.lora_b", &[2, 3], 0, 32)], 64),
            "`../x.lora_b` is neither",
        ),
        (
            file(
                &FIELDS,
                &[good[0], ("blk.1.x.weight.lora_b", &[2, 3], 0, 32)],
                64,
            ),
            "no known layer",
        ),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(word), "no `{word}` in {error}");
        assert!(error.len() < 2000, "{error}");
    }
    let mut nan = file(&FIELDS, &good, 64);
    let end = nan.len();
    nan[end - 32..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = read(&nan).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    assert!(!out.exists());
}

/// Every cut and every changed byte of a header is an error or an adapter.
#[test]
fn changed_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
    let tensors = [
        ("output.weight.lora_a", &[4u64, 2][..], 0, 0),
        ("output.weight.lora_b", &[2, 3], 0, 32),
    ];
    let good = file(&FIELDS, &tensors, 64);
    for length in 0..good.len() - 8 {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            gguf_to_adapter(&path, &out, &GgufOptions::default()).is_err(),
            "{length}"
        );
    }
    for place in 0..good.len() - 64 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[place] = value;
            fs::write(&path, &bytes).unwrap();
            let _ = gguf_to_adapter(&path, &out, &GgufOptions::default());
        }
    }
}
