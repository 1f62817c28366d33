//! The types of GGML whose blocks candle can read.

use candle_core::quantized::GgmlDType::{self, *};

/// Each type with its number in a file and its name in ggml.
const TYPES: [(GgmlDType, u32, &str); 15] = [
    (F32, 0, "F32"),
    (F16, 1, "F16"),
    (Q4_0, 2, "Q4_0"),
    (Q4_1, 3, "Q4_1"),
    (Q5_0, 6, "Q5_0"),
    (Q5_1, 7, "Q5_1"),
    (Q8_0, 8, "Q8_0"),
    (Q8_1, 9, "Q8_1"),
    (Q2K, 10, "Q2_K"),
    (Q3K, 11, "Q3_K"),
    (Q4K, 12, "Q4_K"),
    (Q5K, 13, "Q5_K"),
    (Q6K, 14, "Q6_K"),
    (Q8K, 15, "Q8_K"),
    (BF16, 30, "BF16"),
];

fn find(dtype: GgmlDType) -> (u32, &'static str) {
    let found = TYPES.iter().find(|(known, ..)| *known == dtype);
    found.map_or((u32::MAX, "?"), |&(_, number, name)| (number, name))
}

/// The type's number in a file.
pub(crate) fn number(dtype: GgmlDType) -> u32 {
    find(dtype).0
}

/// The type's name in ggml.
pub(crate) fn name(dtype: GgmlDType) -> &'static str {
    find(dtype).1
}

/// The types that a file holds weights in: `Q8_1` is of inputs only.
pub(crate) fn holds_weights(dtype: GgmlDType) -> bool {
    dtype != Q8_1
}

/// The types that llama.cpp writes adapters in.
pub(crate) fn holds_adapters(dtype: GgmlDType) -> bool {
    matches!(dtype, F32 | F16 | BF16 | Q8_0)
}

/// Whether the values are floats, each by itself.
pub(crate) fn is_float(dtype: GgmlDType) -> bool {
    matches!(dtype, F32 | F16 | BF16)
}

/// Names and numbers of these types, for messages.
pub(crate) fn list(wanted: fn(GgmlDType) -> bool) -> String {
    let types = TYPES.iter().filter(|(dtype, ..)| wanted(*dtype));
    let types = types.map(|(_, number, name)| format!("{name} ({number})"));
    types.collect::<Vec<_>>().join(", ")
}

/// The type with this number.
pub(crate) fn of(number: u32) -> Option<GgmlDType> {
    let found = TYPES.iter().find(|(_, known, _)| *known == number);
    found.map(|(dtype, ..)| *dtype)
}

/// Bytes of a row of this many values.
pub(crate) fn row_size(dtype: GgmlDType, columns: u64) -> Option<u64> {
    let block = dtype.block_size() as u64;
    let blocks = columns.is_multiple_of(block).then(|| columns / block)?;
    blocks.checked_mul(dtype.type_size() as u64)
}
