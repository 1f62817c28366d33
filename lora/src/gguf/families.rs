//! The architectures whose models are read whole: what transformers calls each, and its norms.

use super::archs::Arch;

/// What each norm of a layer is called, here and in transformers.
type Norms = &'static [(&'static str, &'static str)];

/// An architecture whose models are read whole.
#[derive(Debug)]
pub(crate) struct Family {
    /// llama.cpp's name.
    pub(crate) arch: &'static str,
    /// The `model_type`, and the class in transformers.
    pub(crate) model_type: &'static str,
    pub(crate) class: &'static str,
    norms: Norms,
    /// llama.cpp stores the weight of a norm with 1 added.
    norms_have_one_more: bool,
}

/// The norms stand before attention and MLP.
const BEFORE: Norms = &[
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

/// Behind both.
const BEHIND: Norms = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

/// Before and behind both.
const AROUND: Norms = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

const fn family(arch: &'static str, model_type: &'static str, class: &'static str) -> Family {
    Family {
        arch,
        model_type,
        class,
        norms: BEFORE,
        norms_have_one_more: false,
    }
}

const GEMMA: Family = Family {
    norms_have_one_more: true,
    ..family("gemma", "gemma", "GemmaForCausalLM")
};

static FAMILIES: [Family; 11] = [
    family("llama", "llama", "LlamaForCausalLM"),
    family("qwen2", "qwen2", "Qwen2ForCausalLM"),
    family("qwen3", "qwen3", "Qwen3ForCausalLM"),
    family("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    GEMMA,
    Family {
        arch: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        norms: AROUND,
        ..GEMMA
    },
    Family {
        arch: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        norms: AROUND,
        ..GEMMA
    },
    family("phi3", "phi3", "Phi3ForCausalLM"),
    family("smollm3", "smollm3", "SmolLM3ForCausalLM"),
    Family {
        norms: BEHIND,
        ..family("olmo2", "olmo2", "Olmo2ForCausalLM")
    },
    family("granite", "granite", "GraniteForCausalLM"),
];

/// The family of this architecture.
pub(super) fn named(arch: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.arch == arch)
}

pub(super) fn known() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.arch).collect();
    names.join(", ")
}

/// A norm among a model's parameters.
pub(super) struct Norm {
    /// Its path in transformers.
    pub(super) path: String,
    pub(super) has_one_more: bool,
}

impl Family {
    /// The norm that llama.cpp calls so: `model.layers.3.input_layernorm` for `blk.3.attn_norm`.
    pub(super) fn norm(&self, arch: &Arch, name: &str) -> Option<Norm> {
        let path = match name {
            "output_norm" => "model.norm".to_string(),
            _ => {
                let (number, name) = name.strip_prefix("blk.")?.split_once('.')?;
                let (_, module) = self.norms.iter().find(|(known, _)| *known == name)?;
                format!("{}.{number}.{module}", arch.layers)
            }
        };
        Some(Norm {
            path,
            has_one_more: self.norms_have_one_more,
        })
    }

    /// llama.cpp's name of a norm.
    pub(super) fn norm_in_file(&self, arch: &Arch, path: &str) -> Option<String> {
        if path == "model.norm" {
            return Some("output_norm".into());
        }
        let rest = path.strip_prefix(arch.layers)?.strip_prefix('.')?;
        let (number, module) = rest.split_once('.')?;
        let (name, _) = self.norms.iter().find(|(_, known)| *known == module)?;
        Some(format!("blk.{number}.{name}"))
    }
}
