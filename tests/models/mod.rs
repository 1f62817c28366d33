//! Small models of the kinds that people write, each taken through its whole life: converted,
//! trained, saved, loaded, merged and turned back.

mod by_hand;
mod convnext;
mod create;
mod decoder;
mod encoder;
mod experts;
mod fused;
mod generic;
mod life;
mod resnet;
mod sdpa;
mod timm;
mod training;
mod transformers;
mod tuple;
