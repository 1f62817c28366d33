//! The settings that change training images at random.

use super::kind::Kind;
use super::settings::Settings;
use lora::images::Augment;
use serde_json::{Value, json};

/// Their keys.
pub const AUGMENT: [&str; 6] = ["hflip", "vflip", "scale", "ratio", "color_jitter", "warp"];

impl Settings {
    /// How training images are changed.
    pub fn augment(&self) -> Augment {
        let mut augment = Augment::new();
        augment.hflip = self.hflip.unwrap_or(augment.hflip);
        augment.vflip = self.vflip.unwrap_or(augment.vflip);
        augment.scale = self.scale;
        augment.ratio = self.ratio.unwrap_or(augment.ratio);
        augment.color_jitter = self.color_jitter.unwrap_or(augment.color_jitter);
        augment.warp = self.warp.unwrap_or(augment.warp);
        augment
    }

    /// What to say of it, if anything is changed.
    pub fn augment_fact(&self) -> Option<String> {
        let augment = self.augment();
        if augment.is_off() {
            return None;
        }
        let range = |[least, most]: [f64; 2]| format!("{least} to {most}");
        let amounts = [
            ("hflip", augment.hflip),
            ("vflip", augment.vflip),
            ("color_jitter", augment.color_jitter),
            ("warp", augment.warp),
        ];
        let cut = augment.scale.map(|scale| {
            let ratio = self.ratio.map(|ratio| format!(", ratio {}", range(ratio)));
            format!("scale {}{}", range(scale), ratio.unwrap_or_default())
        });
        let amounts = amounts.into_iter().filter(|(_, amount)| *amount > 0.0);
        let amounts = amounts.map(|(key, amount)| format!("{key} {amount}"));
        let on: Vec<String> = cut.into_iter().chain(amounts).collect();
        Some(format!(
            "        training images are changed at random: {}",
            on.join(", ")
        ))
    }

    /// Which of these settings are given and have no effect.
    pub(super) fn augment_without_effect(&self, kind: Kind) -> [(&'static str, bool); 6] {
        let texts = kind != Kind::Images;
        let [hflip, vflip, scale, ratio, color_jitter, warp] = AUGMENT;
        [
            (hflip, self.hflip.is_some() && texts),
            (vflip, self.vflip.is_some() && texts),
            (scale, self.scale.is_some() && texts),
            (
                ratio,
                self.ratio.is_some() && (texts || self.scale.is_none()),
            ),
            (color_jitter, self.color_jitter.is_some() && texts),
            (warp, self.warp.is_some() && texts),
        ]
    }

    /// The problems with going on from a run with these settings: its images were changed in another way.
    pub fn augment_follows(&self, earlier: &Self, name: impl Fn(&str) -> String) -> Vec<String> {
        let shown = |augment: Augment| -> [Value; 6] {
            [
                json!(augment.hflip),
                json!(augment.vflip),
                augment
                    .scale
                    .map_or("the whole image".into(), |scale| json!(scale)),
                json!(augment.ratio),
                json!(augment.color_jitter),
                json!(augment.warp),
            ]
        };
        let (now, then) = (shown(self.augment()), shown(earlier.augment()));
        let all = AUGMENT.into_iter().zip(now.iter().zip(&then));
        let differs = all.filter(|(_, (now, then))| now != then);
        let problems = differs.map(|(key, (now, then))| {
            format!(
                "{} was {then} when the run began, and is {now}: set it as it was, or begin a new run with \
                 another --output",
                name(key)
            )
        });
        problems.collect()
    }
}
