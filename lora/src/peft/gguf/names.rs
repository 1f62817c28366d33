//! llama.cpp's names of a model's weights, and the order of their rows.

use super::GgufOptions;
use candle_core::Tensor;

/// The architectures whose names and order of rows are known. None of them has a layer that is
/// split or joined.
pub(super) const ARCHS: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"];

const LAYER: [(&str, &str); 7] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const WHOLE: [(&str, &str); 2] = [(TOKENS, "model.embed_tokens"), ("output", "lm_head")];

/// The embedding, whose A is stored with a row for each token.
pub(super) const TOKENS: &str = "token_embd";

pub(super) fn known() -> String {
    format!("the architectures known are {}", ARCHS.join(", "))
}

/// `blk.3.attn_q` for `model.layers.3.self_attn.q_proj`.
pub(super) fn to_gguf(path: &str) -> Option<String> {
    // Models of text and images.
    let path = match path.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => path.strip_prefix("language_model.").unwrap_or(path).into(),
    };
    if let Some((name, _)) = WHOLE.iter().find(|(_, module)| *module == path) {
        return Some(name.to_string());
    }
    let (number, module) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let (name, _) = LAYER.iter().find(|(_, known)| *known == module)?;
    is_number(number).then(|| format!("blk.{number}.{name}"))
}

/// `model.layers.3.self_attn.q_proj` for `blk.3.attn_q`.
pub(super) fn from_gguf(name: &str) -> Option<String> {
    if let Some((_, module)) = WHOLE.iter().find(|(known, _)| *known == name) {
        return Some(module.to_string());
    }
    let (number, name) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, module) = LAYER.iter().find(|(known, _)| *known == name)?;
    is_number(number).then(|| format!("model.layers.{number}.{module}"))
}

/// Digits without a leading zero, so that a number has one name.
fn is_number(text: &str) -> bool {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0'))
}

/// How many heads the rows of this weight are ordered by: `None` if their order is the same in
/// both formats.
pub(super) fn heads(
    arch: &str,
    name: &str,
    options: &GgufOptions,
) -> Result<Option<usize>, String> {
    let (heads, what) = match name.rsplit('.').next() {
        _ if arch != "llama" => return Ok(None),
        Some("attn_q") => (options.heads, "heads"),
        Some("attn_k") => (options.kv_heads, "kv_heads"),
        _ => return Ok(None),
    };
    match heads {
        Some(heads) if heads > 0 => Ok(Some(heads)),
        _ => Err(format!(
            "`{name}` has its rows in an order of llama.cpp's own, which depends on the model's \
             heads: set `{what}` of the options, see num_attention_heads and num_key_value_heads \
             in the model's config.json"
        )),
    }
}

/// Moves rows from one order to the other. For each head, transformers stores its two halves one
/// after the other; llama.cpp stores them in pairs.
pub(super) fn reorder(b: &Tensor, heads: usize, to_gguf: bool) -> Result<Tensor, String> {
    let (rows, rank) = b.dims2().map_err(|error| error.to_string())?;
    let pairs = heads.checked_mul(2).filter(|pairs| rows % pairs == 0);
    let Some(half) = pairs.map(|pairs| rows / pairs) else {
        return Err(format!(
            "has {rows} rows, which {heads} heads cannot share in pairs"
        ));
    };
    let shape = match to_gguf {
        true => (heads, 2, half, rank),
        false => (heads, half, 2, rank),
    };
    let reordered = || b.reshape(shape)?.transpose(1, 2)?.reshape((rows, rank));
    reordered().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn names_go_both_ways() {
        for (name, path) in [
            ("blk.0.attn_q", "model.layers.0.self_attn.q_proj"),
            ("blk.31.attn_output", "model.layers.31.self_attn.o_proj"),
            ("blk.7.ffn_down", "model.layers.7.mlp.down_proj"),
            ("token_embd", "model.embed_tokens"),
            ("output", "lm_head"),
        ] {
            assert_eq!(to_gguf(path).as_deref(), Some(name));
            assert_eq!(from_gguf(name).as_deref(), Some(path));
        }
        let text = "model.language_model.layers.2.mlp.up_proj";
        assert_eq!(to_gguf(text).as_deref(), Some("blk.2.ffn_up"));
        for name in [
            "",
            "blk.",
            "blk.0",
            "blk.00.attn_q",
            "blk.-1.attn_q",
            "blk.x.attn_q",
        ] {
            assert_eq!(from_gguf(name), None, "{name}");
        }
        for path in [
            "fc1",
            "layers.0.mlp.up_proj",
            "model.layers.0.mlp",
            "model.layers.1.mlp.x",
        ] {
            assert_eq!(to_gguf(path), None, "{path}");
        }
    }

    /// Two heads of four rows: halves (0 1 | 2 3) become pairs (0 2, 1 3).
    #[test]
    fn rows_are_paired_within_a_head() {
        let rows = Tensor::arange(0f32, 8., &Device::Cpu)
            .unwrap()
            .reshape((8, 1))
            .unwrap();
        let paired = reorder(&rows, 2, true).unwrap();
        let values = paired.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, [0., 2., 1., 3., 4., 6., 5., 7.]);
        let back = reorder(&paired, 2, false).unwrap();
        assert_eq!(
            back.to_vec2::<f32>().unwrap(),
            rows.to_vec2::<f32>().unwrap()
        );
        assert!(reorder(&rows, 3, true).is_err());
        assert!(reorder(&rows, usize::MAX, true).is_err());
    }
}
