//! Small models of the kinds that people write, each taken through its whole life: converted,
//! trained, saved, loaded, merged and turned back.

#[path = "models/by_hand.rs"]
mod by_hand;
#[path = "models/convnext.rs"]
mod convnext;
#[path = "models/decoder.rs"]
mod decoder;
#[path = "models/encoder.rs"]
mod encoder;
#[path = "models/experts.rs"]
mod experts;
#[path = "models/fused.rs"]
mod fused;
#[path = "models/generic.rs"]
mod generic;
#[path = "models/life.rs"]
mod life;
#[path = "models/resnet.rs"]
mod resnet;
#[path = "models/sdpa.rs"]
mod sdpa;
#[path = "models/tuple.rs"]
mod tuple;
