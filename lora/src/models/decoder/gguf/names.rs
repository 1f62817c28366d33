//! llama.cpp's names of a decoder's parameters. Those of linear layers and embeddings are the adapters',
//! too; here are the norms.

use crate::gguf::archs::Arch;
use crate::gguf::names::to_gguf;
use crate::models::decoder::NormPlacement;

/// The names of an architecture.
pub(super) struct Names {
    arch: &'static Arch,
    norms: &'static [(&'static str, &'static str)],
}

/// What each norm of a layer is called, by the places that the norms have.
const BEFORE: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

const BEHIND: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

const AROUND: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

impl Names {
    pub(super) fn new(arch: &'static Arch, placement: NormPlacement) -> Self {
        let norms = match placement {
            NormPlacement::Before => BEFORE,
            NormPlacement::Behind => BEHIND,
            NormPlacement::Around => AROUND,
        };
        Self { arch, norms }
    }

    pub(super) fn arch(&self) -> &'static Arch {
        self.arch
    }

    /// `blk.3.attn_q.weight` for `model.layers.3.self_attn.q_proj.weight`.
    pub(super) fn of(&self, parameter: &str) -> Option<String> {
        let (module, part) = parameter.rsplit_once('.')?;
        let name = match self.norm(module) {
            Some(name) => name,
            None => to_gguf(self.arch, module).into_iter().next()?.name,
        };
        Some(format!("{name}.{part}"))
    }

    fn norm(&self, module: &str) -> Option<String> {
        if module == "model.norm" {
            return Some("output_norm".into());
        }
        let rest = module.strip_prefix(self.arch.layers)?.strip_prefix('.')?;
        let (number, module) = rest.split_once('.')?;
        let (_, name) = self.norms.iter().find(|(known, _)| *known == module)?;
        Some(format!("blk.{number}.{name}"))
    }
}

/// Whether a parameter is a norm's.
pub(super) fn is_of_norm(parameter: &str) -> bool {
    parameter.ends_with("norm.weight")
}
