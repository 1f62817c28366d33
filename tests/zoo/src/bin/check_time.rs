//! What the macros cost in `cargo check`: 51 structs of seven fields, five levels deep, as they are, with
//! `LoraModel` and `#[lora::forward]`, and with serde's two derives.
//!
//! ```text
//! cargo run --release -p lora-zoo --bin check_time
//! ```

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Times `cargo check` of the same structs without and with the macros, by turns.
#[derive(Parser)]
struct Args {
    /// How often each is timed.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

const KINDS: [&str; 3] = ["plain", "lora", "serde"];

fn main() -> Result<()> {
    let args = Args::parse();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let root = project.join("target/check-time");
    for kind in KINDS {
        write(&project, &root.join(kind), kind)?;
    }
    let members = KINDS.map(|kind| format!("{kind:?}")).join(", ");
    let manifest = format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n");
    fs::write(root.join("Cargo.toml"), manifest)?;
    fs::copy(project.join("Cargo.lock"), root.join("Cargo.lock"))?;

    // The dependencies, and the files in the cache.
    for kind in KINDS {
        check(&root, kind)?;
    }
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..args.rounds {
        for (kind, times) in KINDS.iter().zip(&mut times) {
            times.push(check(&root, kind)?);
        }
    }
    let [plain, lora, serde] = times.map(median);
    println!(
        "51 structs of seven fields, five levels deep; median of {} each",
        args.rounds
    );
    println!("as they are                      {plain:6.2} s");
    println!(
        "LoraModel and #[lora::forward]   {lora:6.2} s   +{:.2} s",
        lora - plain
    );
    println!(
        "Serialize and Deserialize        {serde:6.2} s   +{:.2} s",
        serde - plain
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// The time to check a crate whose dependencies are there.
fn check(root: &Path, kind: &str) -> Result<Duration> {
    let file = root.join(kind).join("src/lib.rs");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text)?;
    let start = Instant::now();
    let status = Command::new("cargo")
        .args([
            "check",
            "--quiet",
            "--offline",
            "-p",
            &format!("check_time_{kind}"),
        ])
        .current_dir(root)
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_DIR", root.join("target"))
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{kind} does not compile");
    }
    Ok(start.elapsed())
}

fn write(project: &Path, folder: &Path, kind: &str) -> Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    let lora = project.join("lora");
    let manifest = format!(
        "[package]\nname = \"check_time_{kind}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n\
         lora = {{ package = \"lora-candle\", path = {:?}, default-features = false }}\n\
         candle-core = \"0.11.1\"\ncandle-nn = \"0.11.1\"\n\
         serde = {{ version = \"1.0\", features = [\"derive\"] }}\n",
        lora
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/lib.rs"), source(kind))?;
    Ok(())
}

/// Ten chains of five structs, and the struct above them. Under serde the layers are numbers: it has no
/// impls for candle's.
fn source(kind: &str) -> String {
    let mut text = String::from(
        "#![allow(dead_code)]\nuse candle_core::{Module, Result, Tensor};\n\
         use candle_nn::{LayerNorm, Linear};\n",
    );
    let (derive, forward, rank, layer, norm) = match kind {
        "lora" => (
            "#[derive(lora::LoraModel)] ",
            "#[lora::forward]\n",
            "#[lora(rank)] ",
            "Linear",
            "LayerNorm",
        ),
        "serde" => (
            "#[derive(serde::Serialize, serde::Deserialize)] ",
            "",
            "",
            "f64",
            "f32",
        ),
        _ => ("", "", "", "Linear", "LayerNorm"),
    };
    for chain in 0..10 {
        for level in 0..5 {
            let name = format!("Block{chain}x{level}");
            let below = match level {
                0 => layer.to_string(),
                _ => format!("Block{chain}x{}", level - 1),
            };
            let _ = writeln!(
                text,
                "{derive}pub struct {name} {{ {rank}q: {layer}, {rank}k: {layer}, {rank}v: {layer}, norm: {norm}, \
                 below: {below}, scale: f64, size: usize }}"
            );
            if kind != "serde" {
                let _ = writeln!(
                    text,
                    "{forward}impl Module for {name} {{ fn forward(&self, xs: &Tensor) -> Result<Tensor> {{ \
                     let q = self.q.forward(xs)?; let k = self.k.forward(xs)?; let v = self.v.forward(xs)?; \
                     let ys = (q + k)?.add(&v)?; let ys = self.norm.forward(&ys)?; \
                     self.below.forward(&(ys * self.scale)?) }} }}"
                );
            }
        }
    }
    let fields = (0..7)
        .map(|chain| format!("b{chain}: Block{chain}x4"))
        .collect::<Vec<_>>()
        .join(", ");
    let _ = writeln!(text, "{derive}pub struct Net {{ {fields} }}");
    if kind != "serde" {
        let calls = (0..7)
            .map(|chain| format!("let xs = self.b{chain}.forward(&xs)?;"))
            .collect::<String>();
        let _ = writeln!(
            text,
            "{forward}impl Module for Net {{ fn forward(&self, xs: &Tensor) -> Result<Tensor> {{ \
             let xs = xs.clone(); {calls} Ok(xs) }} }}"
        );
    }
    text
}
