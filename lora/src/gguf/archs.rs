//! The architectures of llama.cpp whose layers are known: one table of names, as the package `gguf`
//! has them, and what else llama.cpp changes.

/// Names of a layer's weights: llama.cpp's, and the module's in transformers, with `*` for the
/// number of an expert. Of two modules with one name, the first is the one that is written.
type Names = &'static [(&'static str, &'static str)];

/// An architecture.
#[derive(Debug)]
pub(crate) struct Arch {
    /// llama.cpp's name.
    pub(crate) name: &'static str,
    /// Its `model_type` in transformers.
    pub(crate) models: &'static [&'static str],
    /// The path of the list of layers.
    pub(crate) layers: &'static str,
    /// The path of the embedding.
    pub(crate) tokens: &'static str,
    /// The path of the head; empty for an encoder.
    pub(crate) head: &'static str,
    pub(crate) groups: &'static [Names],
    pub(crate) rows: Rows,
    /// What transformers takes where the model does not say `tie_word_embeddings`.
    pub(crate) is_tied: bool,
    /// Names of weights for which llama.cpp has no adapter.
    pub(crate) unadapted: &'static [&'static str],
}

/// In which order llama.cpp stores the outputs of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rows {
    /// As transformers does.
    Same,
    /// Queries and keys: both halves of a head in pairs.
    Paired,
    /// Queries, keys, values; transformers has these for each group of heads.
    Ungrouped,
    /// Both, as three weights.
    Split,
}

const ATTENTION: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];

const GATED: Names = &[
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const JOINED: Names = &[
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const EXPERTS: Names = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.*.gate_proj"),
    ("ffn_up_exps", "mlp.experts.*.up_proj"),
    ("ffn_down_exps", "mlp.experts.*.down_proj"),
];

const MIXTRAL: Names = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.*.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.*.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.*.w2"),
];

const SHARED_EXPERT: Names = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

const DEEPSEEK: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

const PHI2: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.dense"),
    ("ffn_up", "mlp.fc1"),
    ("ffn_down", "mlp.fc2"),
];

const PHI3: Names = &[
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
];

const UP_DOWN: Names = &[("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

const FC_PROJ: Names = &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")];

const GPT2: Names = &[("attn_qkv", "attn.c_attn"), ("attn_output", "attn.c_proj")];

const FALCON: Names = &[
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

const NEOX: Names = &[
    ("attn_qkv", "attention.query_key_value"),
    ("attn_output", "attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

const BERT: Names = &[
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
];

const NOMIC: Names = &[
    ("attn_qkv", "attn.Wqkv"),
    ("attn_output", "attn.out_proj"),
    ("ffn_up", "mlp.fc11"),
    ("ffn_gate", "mlp.fc12"),
    ("ffn_down", "mlp.fc2"),
];

const INTERNLM: Names = &[
    ("attn_q", "attention.wqkv"),
    ("attn_k", "attention.wqkv"),
    ("attn_v", "attention.wqkv"),
    ("attn_output", "attention.wo"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_up", "feed_forward.w3"),
    ("ffn_down", "feed_forward.w2"),
];

/// A decoder with the usual names.
const DECODER: Arch = Arch {
    name: "",
    models: &[],
    layers: "model.layers",
    tokens: "model.embed_tokens",
    head: "lm_head",
    groups: &[ATTENTION, GATED],
    rows: Rows::Same,
    is_tied: false,
    unadapted: &[],
};

/// A decoder with GPT-2's names around its layers.
const TRANSFORMER: Arch = Arch {
    layers: "transformer.h",
    tokens: "transformer.word_embeddings",
    is_tied: true,
    ..DECODER
};

const ENCODER: Arch = Arch {
    layers: "encoder.layer",
    tokens: "embeddings.word_embeddings",
    head: "",
    ..DECODER
};

pub(crate) const ARCHS: &[Arch] = &[
    Arch {
        name: "llama",
        models: &["llama", "mistral", "mixtral"],
        groups: &[ATTENTION, GATED, MIXTRAL, EXPERTS],
        rows: Rows::Paired,
        ..DECODER
    },
    decoder("qwen2", &["qwen2"]),
    Arch {
        groups: &[ATTENTION, EXPERTS, SHARED_EXPERT],
        ..decoder("qwen2moe", &["qwen2_moe"])
    },
    decoder("qwen3", &["qwen3"]),
    Arch {
        groups: &[ATTENTION, EXPERTS],
        ..decoder("qwen3moe", &["qwen3_moe"])
    },
    headless("gemma", &["gemma"]),
    headless("gemma2", &["gemma2"]),
    tied("gemma3", &["gemma3_text"]),
    tied("gemma4", &["gemma4_text"]),
    Arch {
        groups: &[PHI2],
        ..decoder("phi2", &["phi"])
    },
    Arch {
        groups: &[PHI3, JOINED],
        ..decoder("phi3", &["phi3"])
    },
    Arch {
        groups: &[ATTENTION, FC_PROJ],
        ..tied("starcoder2", &["starcoder2"])
    },
    Arch {
        name: "falcon",
        models: &["falcon"],
        groups: &[FALCON],
        rows: Rows::Ungrouped,
        ..TRANSFORMER
    },
    Arch {
        name: "gpt2",
        models: &["gpt2"],
        tokens: "transformer.wte",
        groups: &[GPT2, FC_PROJ],
        ..TRANSFORMER
    },
    Arch {
        name: "bloom",
        models: &["bloom"],
        groups: &[FALCON],
        rows: Rows::Ungrouped,
        ..TRANSFORMER
    },
    Arch {
        layers: "gpt_neox.layers",
        tokens: "gpt_neox.embed_in",
        head: "embed_out",
        groups: &[NEOX],
        rows: Rows::Ungrouped,
        ..decoder("gptneox", &["gpt_neox"])
    },
    Arch {
        name: "bert",
        models: &["bert", "roberta", "xlm-roberta", "camembert"],
        groups: &[BERT],
        ..ENCODER
    },
    Arch {
        name: "nomic-bert",
        models: &["nomic_bert"],
        layers: "encoder.layers",
        groups: &[NOMIC],
        ..ENCODER
    },
    decoder("stablelm", &["stablelm"]),
    Arch {
        rows: Rows::Paired,
        ..decoder("olmo", &["olmo"])
    },
    decoder("olmo2", &["olmo2"]),
    Arch {
        groups: &[ATTENTION, EXPERTS],
        ..decoder("olmoe", &["olmoe"])
    },
    Arch {
        rows: Rows::Paired,
        ..decoder("granite", &["granite"])
    },
    Arch {
        groups: &[DEEPSEEK, GATED, EXPERTS],
        unadapted: &[
            "attn_q",
            "attn_q_a",
            "attn_q_b",
            "attn_kv_a_mqa",
            "attn_kv_b",
            "output",
        ],
        ..decoder("deepseek2", &["deepseek_v2", "deepseek_v3"])
    },
    Arch {
        groups: &[ATTENTION, JOINED],
        ..decoder("glm4", &["glm4"])
    },
    Arch {
        rows: Rows::Paired,
        ..tied("smollm3", &["smollm3"])
    },
    Arch {
        tokens: "model.tok_embeddings",
        head: "output",
        groups: &[INTERNLM],
        rows: Rows::Split,
        ..decoder("internlm2", &["internlm2"])
    },
    headless("command-r", &["cohere"]),
    headless("cohere2", &["cohere2"]),
    Arch {
        groups: &[ATTENTION, UP_DOWN],
        ..decoder("nemotron", &["nemotron"])
    },
    decoder("exaone4", &["exaone4"]),
    decoder("seed_oss", &["seed_oss"]),
];

const fn decoder(name: &'static str, models: &'static [&'static str]) -> Arch {
    Arch {
        name,
        models,
        ..DECODER
    }
}

const fn tied(name: &'static str, models: &'static [&'static str]) -> Arch {
    Arch {
        is_tied: true,
        ..decoder(name, models)
    }
}

/// A decoder whose head is the embedding in every model.
const fn headless(name: &'static str, models: &'static [&'static str]) -> Arch {
    Arch {
        unadapted: &["token_embd", "output"],
        ..tied(name, models)
    }
}

/// The architecture of this name.
pub(crate) fn named(name: &str) -> Option<&'static Arch> {
    ARCHS.iter().find(|arch| arch.name == name)
}

/// The architecture of a `model_type`, or of llama.cpp's own name of it.
pub(crate) fn of_model(model_type: &str) -> Option<&'static Arch> {
    let mut archs = ARCHS.iter();
    let of_model = archs.find(|arch| arch.models.contains(&model_type));
    of_model.or_else(|| named(model_type))
}

pub(crate) fn known() -> String {
    let names: Vec<_> = ARCHS.iter().map(|arch| arch.name).collect();
    format!("the architectures known are {}", names.join(", "))
}

impl Arch {
    /// The names of a layer's weights.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.groups.iter().copied().flatten()
    }
}
