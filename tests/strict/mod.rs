//! Where PEFT ignores something in silence or computes something wrong: here it is an error that
//! names the thing, or right.
//!
//! Some of PEFT's sharp edges have no counterpart:
//!
//! | of PEFT | why not here |
//! |---|---|
//! | "Attempting to unscale FP16 gradients" under AMP | there is no autocast and no gradient scaler; adapters are f32 on a 16-bit base, which `sixteen_bit_bases_have_wide_adapters` shows |
//! | shards of ZeRO-3 and FSDP saved as empty tensors | a model is in one process, with whole tensors |
//! | bitsandbytes adds the bias of B unscaled when merging | there are no such layers; `merging_scales_the_bias_of_b` shows the rule |
//! | a 1×1×k Conv3d cannot be merged, padding modes get lost | candle has neither; dilation is in `merging_keeps_dilation` |
//! | conversion twice stacks adapters | a LoRA model is of another type, which has no `to_lora`; what it turns back into has no adapter |
//! | a copy of `modules_to_save` stays after `unload` | `disabled` and `delete_adapter` give the base's tensors; `disabling_gives_the_base_with_trained_biases` |

mod edges;
mod files;
mod lifecycle;
mod net;
mod snapshot;
mod status;
mod targets;
mod vocabulary;
