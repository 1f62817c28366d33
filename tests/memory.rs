//! How much memory a pass takes: every allocation of the process is counted, and one test makes them
//! all.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::Linear;
use lora::blocks::Attention;
use lora::layers::QLinear;
use lora::models::Options;
use lora::models::decoder::from_gguf;
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::fixed;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, which notes how many bytes are in use and how many were at most.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: memory comes from the system's allocator and goes back to it as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How many bytes more than before are in use at most while `f` runs.
fn peak_of(f: impl FnOnce()) -> usize {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    f();
    PEAK.load(Relaxed) - before
}

#[test]
fn passes_take_little_memory() {
    attention_is_linear_in_the_length();
    a_quantised_weight_is_never_held_in_full();
    a_gguf_file_is_read_tensor_by_tensor();
    nodes_keep_what_they_say();
}

/// The layers of an attention, of which queries and values are adapted.
#[derive(Clone, Debug, LoraModel)]
struct Attending {
    #[lora(rank)]
    q: Linear,
    k: Linear,
    #[lora(rank)]
    v: Linear,
    output: Linear,
}

/// What is in use after a forward pass, in units of the input: the result, and what the graph keeps.
fn nodes_keep_what_they_say() {
    let (batch, time, width) = (8, 64, 64);
    let layer = |seed| Linear::new(fixed((width, width), DType::F32, seed), None);
    let base = Attending {
        q: layer(1),
        k: layer(2),
        v: layer(3),
        output: layer(4),
    };
    let model = base.to_lora(&LoraConfig::new(1)).unwrap();
    let x = Var::from_tensor(&fixed((batch, time, width), DType::F32, 5)).unwrap();
    let kept = |f: &dyn Fn() -> Tensor| {
        let before = IN_USE.load(Relaxed);
        let y = f();
        let after = IN_USE.load(Relaxed);
        assert_eq!(y.dims(), x.dims());
        (after - before) as f64 / (batch * time * width * 4) as f64
    };
    let attention = |recompute| {
        let block = Attention::new(&model.q, &model.k, &model.v, &model.output, 4);
        let block = block.recompute(recompute).shortcut(&x);
        block.forward(&x).unwrap()
    };
    // Threads make what they keep for themselves.
    attention(false);
    let weight = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    let [all, little, norm] = [
        kept(&|| attention(false)),
        kept(&|| attention(true)),
        // The sum is gone: the norm keeps its result.
        kept(&|| ops::rms_norm(&ops::add(&x, &x).unwrap(), &weight, 1e-5).unwrap()),
    ];
    // Queries, keys, values; then the numbers between A and B, and a sum for each head and query.
    assert!((4.0..4.3).contains(&all), "{all}");
    assert!((1.0..1.3).contains(&little), "{little}");
    assert!((1.0..1.1).contains(&norm), "{norm}");
}

/// 16384·16384 scores would be 1 GiB.
fn attention_is_linear_in_the_length() {
    let length = 1 << 14;
    let x = Var::from_tensor(&fixed((1, 1, length, 1), DType::F32, 1)).unwrap();
    let more = peak_of(|| {
        let y = ops::sdpa(&x, &x, &x, None, true, 1.0, 1.0).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().dims(), x.dims());
    });
    // The output and the gradients alone are that much: nothing is left out of the count.
    assert!(more >= 4 * length, "{more} bytes");
    assert!(more < 128 << 20, "{more} bytes");
}

/// In full precision 4096·4096 numbers would be 64 MiB.
fn a_quantised_weight_is_never_held_in_full() {
    let (outputs, inputs) = (4096, 4096);
    let bytes = vec![0x11; outputs * inputs / 32 * 20];
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, GgmlDType::Q4_1).unwrap();
    let weight = Arc::new(QTensor::new(storage, (outputs, inputs)).unwrap());
    let layer = QLinear::new(weight, None).unwrap();
    let x = Var::from_tensor(&fixed((32, inputs), DType::F32, 1)).unwrap();
    // DoRA asks for the norms of the weight, too.
    for config in [LoraConfig::new(8), LoraConfig::new(8).use_dora(true)] {
        let more = peak_of(|| {
            let model = layer.to_lora(&config).unwrap();
            let loss = model.forward(&x).unwrap().sqr().unwrap().mean_all();
            let grads = model.backward(&loss.unwrap()).unwrap();
            assert_eq!(grads.get(&x).unwrap().dims(), x.dims());
        });
        // The output and the gradient of the input alone are one MiB.
        assert!(more >= 1 << 20, "{more} bytes");
        // Each thread has a panel of the weight.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(more < (24 << 20) + (threads << 20), "{more} bytes");
    }
}

/// The most that is in use while a file is read.
fn loading(path: &Path) -> usize {
    let mut model = None;
    peak_of(|| model = Some(from_gguf(path, &Options::new()).unwrap()))
}

/// A GGUF file is read tensor by tensor: at most its weights and one tensor more are in memory.
fn a_gguf_file_is_read_tensor_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let (width, rows) = (256u32, 4096usize);
    let fields = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(width)),
        ("llama.block_count", Value::U32(1)),
        ("llama.feed_forward_length", Value::U32(rows as u32)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    let width = width as usize;
    let quantised = |rows: usize, columns: usize, kind| {
        let weight = fixed((rows, columns), DType::F32, 1);
        QTensor::quantize(&weight, kind).unwrap()
    };
    let mut tensors = vec![("token_embd.weight", quantised(rows, width, GgmlDType::Q8_0))];
    for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        let name: &str = format!("blk.0.{name}.weight").leak();
        tensors.push((name, quantised(width, width, GgmlDType::Q4_1)));
    }
    tensors.push((
        "blk.0.ffn_gate.weight",
        quantised(rows, width, GgmlDType::Q4_1),
    ));
    tensors.push((
        "blk.0.ffn_up.weight",
        quantised(rows, width, GgmlDType::Q4_1),
    ));
    tensors.push((
        "blk.0.ffn_down.weight",
        quantised(width, rows, GgmlDType::Q4_1),
    ));
    for name in [
        "blk.0.attn_norm.weight",
        "blk.0.ffn_norm.weight",
        "output_norm.weight",
    ] {
        let ones = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
        tensors.push((name, QTensor::quantize(&ones, GgmlDType::F32).unwrap()));
    }
    let fields: Vec<(&str, &Value)> = fields.iter().map(|(key, value)| (*key, value)).collect();
    let list: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, of)| (*name, of)).collect();
    gguf_file::write(&mut File::create(&path).unwrap(), &fields, &list).unwrap();
    let size = std::fs::metadata(&path).unwrap().len() as usize;
    let largest = tensors[0].1.storage_size_in_bytes();
    drop(tensors);
    let more = loading(&path);
    assert!(
        more <= size + largest + (64 << 10),
        "{more} bytes for {size} and {largest}"
    );
    assert!(more >= size / 2, "{more} bytes");
    // The same of a real file: `tests/fixtures/smollm2/make.py` says where to get one.
    if let Ok(path) = std::env::var("LORA_SMOLLM2") {
        let (size, more) = (
            std::fs::metadata(&path).unwrap().len(),
            loading(Path::new(&path)),
        );
        println!("{path}: {more} bytes at most, the file has {size}");
        assert!(more as u64 <= size + size / 3);
    }
}
