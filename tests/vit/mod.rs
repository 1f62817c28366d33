//! The vision transformers of `lora::models` against transformers, timm and PEFT.

mod adapters;
mod config;
mod dropout;
mod images;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use lora::models::vit::{Vit, VitConfig, VitPool};
use lora::models::{self, Architecture, Created, Options, Weights};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folders that `make.py` writes with transformers.
const CASES: [&str; 10] = [
    "vit",
    "vit_bare",
    "deit",
    "deit_teacher",
    "dinov2",
    "dinov2_bare",
    "clip",
    "clip_whole",
    "siglip",
    "siglip_whole",
];

/// Those that it writes with timm.
const TIMM: [&str; 5] = [
    "timm_vit",
    "timm_mean",
    "timm_dinov2",
    "timm_clip",
    "timm_deit",
];

fn folder(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vit");
    fixtures.join(case)
}

fn io(case: &str) -> HashMap<String, Tensor> {
    load(folder(case).join("io.safetensors"), &Device::Cpu).unwrap()
}

/// The configuration of a case of timm: a variant in the fixtures' size.
fn timm_config(case: &str) -> VitConfig {
    let variant = match case {
        "timm_dinov2" => "vit_base_patch14_dinov2",
        "timm_clip" => "vit_base_patch16_clip_224",
        "timm_deit" => "deit_base_distilled_patch16_224",
        _ => "vit_base_patch16_224",
    };
    let variants = Vit::variants().iter();
    let mut variants = variants.filter(|found| found.name == variant);
    let mut config = variants.next().unwrap().config.clone();
    (config.image_size, config.patch_size) = (24, 8);
    (config.hidden_size, config.intermediate_size) = (32, 40);
    (config.num_hidden_layers, config.num_attention_heads) = (2, 4);
    if case == "timm_clip" {
        config.in_chans = 2;
    }
    if case == "timm_mean" {
        config.pool = VitPool::Mean;
    }
    config
}

fn read(case: &str, options: &Options) -> Created<Vit> {
    let created = match case.starts_with("timm") {
        true => {
            let weights = Weights::File(folder(case).join("model.safetensors"));
            models::build::<Vit>(&timm_config(case), weights, options)
        }
        false => models::auto(folder(case), options).map(|auto| auto.into_vit().unwrap()),
    };
    created.unwrap_or_else(|error| panic!("{case}: {error}"))
}

fn of(case: &str, dtype: DType) -> Vit {
    read(case, &Options::new().dtype(dtype)).model
}
