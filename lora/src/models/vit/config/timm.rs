//! Reading a `config.json` as timm writes it: a variant's name, and what differs from the variant.

use super::parse::check;
use super::{VitConfig, VitDropouts, VitPool};
use crate::models::keys::{Keys, MAX_WIDTH};
use crate::models::vit::variants::VARIANTS;
use serde_json::{Map, Value};

/// Keys that say nothing about the result.
const HARMLESS: &[&str] = &["num_features", "pretrained_cfg"];

/// Settings that act in training only, and that training does not draw.
const DROPOUTS: &[&str] = &["drop_path_rate", "patch_drop_rate"];

/// Whether a file is one of timm's.
pub(super) fn is_timms(map: &Map<String, Value>) -> bool {
    map.contains_key("architecture") && !map.contains_key("model_type")
}

/// Reads a configuration, or tells everything wrong with it.
pub(super) fn parse(map: &Map<String, Value>) -> Result<VitConfig, Vec<String>> {
    let keys = Keys::new(map);
    let name: String = keys.need("architecture");
    let variant = VARIANTS.iter().find(|variant| variant.name == name);
    let Some(variant) = variant else {
        let known: Vec<&str> = VARIANTS.iter().map(|variant| variant.name).collect();
        return Err(vec![format!(
            "`architecture` is {name:?}: timm's models of images are {}",
            known.join(", ")
        )]);
    };
    let mut config = variant.config.clone();
    read(&mut config, &keys);
    if let Some(args) = keys.object("model_args") {
        read(&mut config, &args);
        config.image_size = args.count("img_size", config.image_size, 1 << 16);
        let projection = args.dropout("proj_drop_rate", 0.0);
        config.dropouts = VitDropouts {
            embeddings: args.dropout("pos_drop_rate", 0.0),
            attention: args.dropout("attn_drop_rate", 0.0),
            output: projection,
            inner: projection,
            mlp: projection,
            classifier: args.dropout("drop_rate", 0.0),
        };
        for key in DROPOUTS {
            let share = args.get(key, 0.0);
            if share != 0.0 {
                let note = format!("`{key}` is {share}: training has no such dropout here");
                config.without_effect.push(note);
            }
        }
        keys.close(args);
    }
    check(&config, &keys);
    let unknown = keys.without_effect(&[], HARMLESS);
    config.without_effect.extend(unknown);
    let problems = keys.into_problems();
    match problems.is_empty() {
        true => Ok(config),
        false => Err(problems),
    }
}

/// What stands in either part of the file.
fn read(config: &mut VitConfig, keys: &Keys<'_>) {
    if let Some(classes) = keys.find::<usize>("num_classes") {
        if classes > MAX_WIDTH {
            keys.refuse("num_classes", "no model has so many classes");
        } else {
            *config = config.clone().with_num_labels(classes);
        }
    }
    if let Some(pool) = keys.find::<String>("global_pool") {
        match pool.as_str() {
            "token" => config.pool = VitPool::Class,
            "avg" => config.pool = VitPool::Mean,
            _ => keys.refuse("global_pool", "supported are token and avg"),
        }
    }
}
