//! Training against PEFT: the losses of the same steps from the same adapter, and where they lead.

use candle_core::safetensors::load;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder};
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::{LoraModel, LoraModule};
use lora_tests::assert_close;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/training")
}

/// A model and what PEFT's training of it gave.
struct Fixture {
    config: ConvNextConfig,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    fn read() -> Self {
        let path = folder().join("convnext.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        Self {
            config: serde_json::from_str(config).unwrap(),
            tensors: load(path, &Device::Cpu).unwrap(),
        }
    }

    /// Trains as PEFT did; panics unless the losses are the same.
    fn train(&self, dtype: DType, tolerance: f64) -> <ConvNext as LoraModel>::Lora {
        let vb = VarBuilder::from_tensors(self.tensors.clone(), dtype, &Device::Cpu);
        let base = ConvNext::new(&self.config, vb).unwrap();
        let mut net = base.with_adapter(folder().join("adapter")).unwrap();
        net.train();
        let params = ParamsAdamW {
            lr: 1e-2,
            weight_decay: 0.01,
            ..ParamsAdamW::default()
        };
        let mut optimizer = AdamW::new(net.trainable_vars(), params).unwrap();
        let images = self.tensors["__images"].to_dtype(dtype).unwrap();
        let losses: Vec<f32> = self.tensors["__losses"].to_vec1().unwrap();
        for (step, &expected) in losses.iter().enumerate() {
            let logits = net.forward(&images).unwrap();
            let loss = cross_entropy(&logits, &self.tensors["__labels"]).unwrap();
            let grads = net.backward(&loss).unwrap();
            let loss = lora_tests::values(&loss).unwrap()[0];
            let error = (loss - f64::from(expected)).abs();
            assert!(
                error <= tolerance,
                "step {step}: {loss} instead of {expected}"
            );
            if step + 1 < losses.len() {
                optimizer.step(&grads).unwrap();
            }
        }
        net
    }

    /// The largest errors that training in this dtype may have, of a loss and of a parameter.
    fn check(&self, dtype: DType, loss: f64, parameter: f64) {
        let directory = tempfile::tempdir().unwrap();
        self.train(dtype, loss)
            .save_adapter(directory.path())
            .unwrap();
        let saved = load(
            directory.path().join("adapter_model.safetensors"),
            &Device::Cpu,
        )
        .unwrap();
        let prefix = "__trained.";
        let expected = self.tensors.iter();
        let expected =
            expected.filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        let mut count = 0;
        for (name, expected) in expected {
            assert_close(name, &saved[name], expected, parameter);
            count += 1;
        }
        assert_eq!(count, saved.len());
        assert_eq!(count, 2 * 2 * 5 + 2);
    }
}

#[test]
fn three_steps_are_pefts() {
    let fixture = Fixture::read();
    fixture.check(DType::F32, 1e-4, 1e-3);
    fixture.check(DType::F64, 1e-6, 1e-6);
}
