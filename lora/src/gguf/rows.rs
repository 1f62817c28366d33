//! The order of a weight's rows: llama.cpp stores the outputs of queries, keys and values in an
//! order of its own.

use super::archs::{Arch, Rows};
use super::names::kind;
use candle_core::Tensor;

/// How many heads a model has, where that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) queries: Option<usize>,
    pub(crate) keys: Option<usize>,
    /// The metadata of a model's file say so, rather than options.
    pub(crate) of_file: bool,
}

/// For each row that llama.cpp has the row of the module, in a module of `count` rows; `None` where
/// both have the same rows.
pub(crate) fn order(
    arch: &Arch,
    name: &str,
    count: usize,
    heads: Heads,
) -> Result<Option<Vec<u32>>, String> {
    let order = ordered(arch, kind(name), count, heads);
    order.map_err(|problem| format!("`{name}` {problem}"))
}

fn ordered(
    arch: &Arch,
    kind: &str,
    count: usize,
    heads: Heads,
) -> Result<Option<Vec<u32>>, String> {
    let (of_queries, of_keys) = (("heads", heads.queries), ("kv_heads", heads.keys));
    let of_file = heads.of_file;
    let heads = |(field, heads): (&str, Option<usize>)| match heads {
        Some(heads) if heads > 0 => Ok(heads),
        _ if of_file => Err(format!(
            "has its rows in an order of llama.cpp's own, which depends on the model's heads: \
             `{}.attention.head_count` is missing or 0",
            arch.name
        )),
        _ => Err(format!(
            "has its rows in an order of llama.cpp's own, which depends on the model's \
             heads: set `{field}` of the options, see num_attention_heads and num_key_value_heads \
             in the model's config.json"
        )),
    };
    let rows: Vec<u32> = (0..count as u32).collect();
    let order = match (arch.rows, kind) {
        (Rows::Paired, "attn_q") => paired(&rows, heads(of_queries)?)?,
        (Rows::Paired, "attn_k") => paired(&rows, heads(of_keys)?)?,
        (Rows::Ungrouped, "attn_qkv") => {
            ungrouped(&rows, heads(of_queries)?, heads(of_keys)?)?.concat()
        }
        (Rows::Split, kind @ ("attn_q" | "attn_k" | "attn_v")) => {
            let [q, k, v] = ungrouped(&rows, heads(of_queries)?, heads(of_keys)?)?;
            match kind {
                "attn_q" => paired(&q, heads(of_queries)?)?,
                "attn_k" => paired(&k, heads(of_keys)?)?,
                _ => v,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(order))
}

/// For each head, transformers stores its two halves one after the other; llama.cpp stores both in
/// pairs.
fn paired(rows: &[u32], heads: usize) -> Result<Vec<u32>, String> {
    let count = rows.len();
    let pairs = heads
        .checked_mul(2)
        .filter(|pairs| count.is_multiple_of(*pairs));
    let Some(half) = pairs.map(|pairs| count / pairs) else {
        return Err(format!(
            "has {count} rows, which {heads} heads cannot share in pairs"
        ));
    };
    let heads = rows.chunks(2 * half.max(1));
    let pairs = heads.flat_map(|head| (0..half).flat_map(move |i| [head[i], head[half + i]]));
    Ok(pairs.collect())
}

/// Queries, keys and values. Transformers has for each head of keys its heads of queries, then its
/// keys and its values.
fn ungrouped(rows: &[u32], heads: usize, kv_heads: usize) -> Result<[Vec<u32>; 3], String> {
    let count = rows.len();
    let wrong = || {
        format!("has {count} rows, which {heads} heads and {kv_heads} heads of keys cannot share")
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(wrong());
    }
    let parts = (heads / kv_heads).checked_add(2);
    let all = parts.and_then(|parts| parts.checked_mul(kv_heads));
    let Some(size) = all
        .filter(|all| count.is_multiple_of(*all))
        .map(|all| count / all)
    else {
        return Err(wrong());
    };
    let mut sorted = [Vec::new(), Vec::new(), Vec::new()];
    for (place, part) in rows.chunks(size.max(1)).enumerate() {
        let place = place % (heads / kv_heads + 2);
        sorted[place.saturating_sub(heads / kv_heads - 1)].extend(part);
    }
    Ok(sorted)
}

/// The rows in llama.cpp's order.
pub(crate) fn select(b: &Tensor, order: Vec<u32>) -> candle_core::Result<Tensor> {
    let count = order.len();
    b.index_select(&Tensor::from_vec(order, count, b.device())?, 0)
}

/// The place of each of the module's rows.
pub(crate) fn inverse(order: &[u32]) -> Vec<u32> {
    let mut inverse = vec![0; order.len()];
    for (place, row) in order.iter().enumerate() {
        inverse[*row as usize] = place as u32;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::super::archs::named;
    use super::*;

    fn of_heads(queries: usize, keys: usize) -> Heads {
        Heads {
            queries: Some(queries),
            keys: Some(keys),
            of_file: false,
        }
    }

    fn of(arch: &str, name: &str, count: usize, heads: usize, kv: usize) -> Option<Vec<u32>> {
        let options = of_heads(heads, kv);
        order(named(arch).unwrap(), name, count, options).unwrap()
    }

    /// Two heads of four rows: halves (0 1 | 2 3) become pairs (0 2, 1 3).
    #[test]
    fn rows_are_paired_within_a_head() {
        let paired = of("llama", "blk.0.attn_q", 8, 2, 1).unwrap();
        assert_eq!(paired, [0, 2, 1, 3, 4, 6, 5, 7]);
        let back: Vec<u32> = inverse(&paired)
            .iter()
            .map(|row| paired[*row as usize])
            .collect();
        assert_eq!(back, [0, 1, 2, 3, 4, 5, 6, 7]);
        let keys = of("llama", "blk.0.attn_k", 8, 2, 1).unwrap();
        assert_eq!(keys, [0, 4, 1, 5, 2, 6, 3, 7]);
        assert_eq!(of("llama", "blk.0.attn_v", 8, 2, 1), None);
        assert_eq!(of("qwen2", "blk.0.attn_q", 8, 2, 1), None);
        let llama = named("llama").unwrap();
        for heads in [3, usize::MAX] {
            let options = of_heads(heads, heads);
            assert!(order(llama, "blk.0.attn_q", 8, options).is_err());
        }
    }

    /// Four heads of two rows in two groups: q q k v | q q k v.
    #[test]
    fn groups_become_queries_keys_and_values() {
        let falcon = of("falcon", "blk.0.attn_qkv", 16, 4, 2).unwrap();
        let expected = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];
        assert_eq!(falcon, expected);
        // One head of keys for all.
        let single = of("falcon", "blk.0.attn_qkv", 4, 2, 1).unwrap();
        assert_eq!(single, [0, 1, 2, 3]);
        // As many as heads of queries: q k v | q k v.
        let bloom = of("bloom", "blk.0.attn_qkv", 6, 2, 2).unwrap();
        assert_eq!(bloom, [0, 3, 1, 4, 2, 5]);
        let internlm = |name| of("internlm2", name, 16, 4, 2).unwrap();
        assert_eq!(internlm("blk.0.attn_q"), [0, 1, 2, 3, 8, 9, 10, 11]);
        assert_eq!(internlm("blk.0.attn_k"), [4, 5, 12, 13]);
        assert_eq!(internlm("blk.0.attn_v"), [6, 7, 14, 15]);
        let falcon = named("falcon").unwrap();
        for (heads, kv, count) in [(3, 2, 16), (4, 2, 15), (usize::MAX, 1, 16)] {
            let options = of_heads(heads, kv);
            assert!(order(falcon, "blk.0.attn_qkv", count, options).is_err());
        }
    }
}
