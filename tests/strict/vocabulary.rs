//! Trained rows of embeddings and heads, heads that share an embedding's weight, and weights by name.

use super::net::{perturb, refused};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, check_gradients, fixed, relative_error, values};

#[derive(Clone, Debug, LoraModel)]
struct Lm {
    embed: Embedding,
    fc: Linear,
    lm_head: Linear,
}

#[lora::forward]
impl Module for Lm {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = ids.apply(&self.embed)?.apply(&self.fc)?.tanh()?;
        xs.apply(&self.lm_head)
    }
}

fn lm(is_tied: bool, vocabulary: usize, dtype: DType) -> Lm {
    let table = fixed((vocabulary, 4), dtype, 1);
    let head = match is_tied {
        true => table.clone(),
        false => fixed((vocabulary, 4), dtype, 3),
    };
    Lm {
        embed: Embedding::new(table, 4),
        fc: Linear::new(fixed((4, 4), dtype, 2), None),
        lm_head: Linear::new(head, None),
    }
}

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 3, 2], [3, 0, 2]], &Device::Cpu).unwrap()
}

fn config() -> LoraConfig {
    LoraConfig::new(2).target_modules(["fc"]).seed(1)
}

#[test]
fn two_adapters_that_train_one_row_cannot_act_together() {
    for (layer, rows) in [("embed", [2, 3]), ("lm_head", [2, 3])] {
        let rows = config().trainable_token_indices(layer, rows);
        let mut model = lm(false, 7, DType::F32).to_lora(&rows).unwrap();
        let overlapping = config().trainable_token_indices(layer, [5, 3]);
        model.add_adapter("more", &overlapping).unwrap();
        let apart = config().trainable_token_indices(layer, [6]);
        model.add_adapter("apart", &apart).unwrap();
        let problem = format!("`default` and `more` both train row 3 of `{layer}`");
        refused(model.set_active(&["default", "more"]), &[&problem]);
        refused(model.merge_adapters(&["more"]), &[&problem]);
        assert_eq!(model.active_adapters(), ["default"]);
        model.set_active(&["default", "apart"]).unwrap();
        perturb(&model, 5);
        let before = model.forward(&ids()).unwrap();
        model.merge_adapters(&["apart"]).unwrap();
        assert_close("merged", &model.forward(&ids()).unwrap(), &before, 1e-6);
        // Rows of one batch have one adapter each.
        model.unmerge().unwrap();
        model.for_rows(&[Some("default"), Some("more")]).unwrap();
        // Nor can one come in by a swap.
        let dir = tempfile::tempdir().unwrap();
        model.set_active(&["more"]).unwrap();
        let only = lora::peft::SaveOptions::new().adapters(["more"]);
        model.save_adapter_with(dir.path(), &only).unwrap();
        model.set_active(&["default", "apart"]).unwrap();
        let swapped = model.hot_swap("apart", dir.path().join("more"));
        refused(swapped, &["both train row 3"]);
        assert_eq!(model.active_adapters(), ["default", "apart"]);
    }
}

#[test]
fn rows_of_a_head_are_trained() {
    let rows = config().trainable_token_indices("lm_head", [6, 2]);
    let model = lm(false, 7, DType::F64).to_lora(&rows).unwrap();
    let base = lm(false, 7, DType::F64);
    let before = base.forward(&ids()).unwrap();
    assert_close("fresh", &model.forward(&ids()).unwrap(), &before, 1e-12);
    let params = model.named_params().into_iter();
    let rows: Vec<_> = params
        .filter(|param| param.path == "lm_head.token_adapter.trainable_tokens_delta.default")
        .collect();
    assert!(rows[0].is_trainable());
    assert_eq!(rows[0].tensor.dims(), [2, 4]);
    perturb(&model, 5);
    let vars = model.trainable_vars();
    let named: Vec<_> = vars.iter().map(|var| ("rows", var)).collect();
    check_gradients("head", &named, || model.forward(&ids()));

    // Only the scores of these two tokens follow the rows.
    let tuned = model.to_base().unwrap();
    let expected = fixed((7, 4), DType::F64, 3);
    for row in 0..7 {
        let (own, base) = (tuned.lm_head.weight().get(row), expected.get(row));
        let same = values(&own.unwrap()).unwrap() == values(&base.unwrap()).unwrap();
        assert_eq!(same, ![2, 6].contains(&row), "{row}");
    }
    let out = model.forward(&ids()).unwrap();
    assert_close("base", &tuned.forward(&ids()).unwrap(), &out, 1e-12);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let again = base.with_adapter(dir.path()).unwrap();
    assert_close("loaded", &again.forward(&ids()).unwrap(), &out, 1e-12);
}

#[test]
fn rows_are_named_at_a_layer_that_has_them() {
    let of_norm = LoraConfig::new(2).trainable_token_indices("0", [1]);
    let conv = candle_nn::Conv1d::new(fixed((3, 2, 1), DType::F32, 1), None, Default::default());
    let problem = "trainable_token_indices names `0`, a Conv1d: rows can be trained of an Embedding, \
                   and of a Linear with an output for each token";
    refused(vec![conv].to_lora(&of_norm), &[problem]);
    let of_head = config().trainable_token_indices("lm_head", [1]);
    let problem = "trainable_token_indices names `lm_head`, which shares the weight of `embed`: name \
                   `embed`, whose rows act on both";
    refused(lm(true, 7, DType::F32).to_lora(&of_head), &[problem]);
    let beyond = config().trainable_token_indices("lm_head", [7]);
    refused(
        lm(false, 7, DType::F32).to_lora(&beyond),
        &["lm_head", "there is no row 7 of 7"],
    );
}

/// The head has a magnitude of its own, one for each token, also where the vocabulary has as many rows
/// as columns.
#[test]
fn a_tied_head_with_dora_has_its_own_magnitude() {
    let config = LoraConfig::new(2)
        .target_modules(["embed", "fc"])
        .ensure_weight_tying(true)
        .use_dora(true)
        .seed(1);
    for vocabulary in [7, 4] {
        let base = lm(true, vocabulary, DType::F64);
        let mut model = base.to_lora(&config).unwrap();
        let before = base.forward(&ids()).unwrap();
        assert_close("fresh", &model.forward(&ids()).unwrap(), &before, 1e-12);
        let find = |model: &LoraLm, path: &str| {
            let params = model.named_params().into_iter();
            let mut params = params.filter(|param| param.path == path);
            params.next().unwrap()
        };
        let of_head = find(&model, "lm_head.lora_magnitude_vector.default");
        assert!(of_head.is_trainable());
        assert_eq!(of_head.tensor.dims(), [vocabulary]);
        let of_embed = find(&model, "embed.lora_magnitude_vector.default");
        assert_eq!(of_embed.tensor.dims(), [4]);

        perturb(&model, 5);
        let loss = model.forward(&ids()).unwrap().sqr().unwrap().mean_all();
        model.backward(&loss.unwrap()).unwrap();
        let out = model.forward(&ids()).unwrap();
        assert!(relative_error(&out, &before).unwrap() > 1e-2);
        // The formula, written out: m ⊙ V / ‖V‖ by rows of the head.
        let v = model.embed.adapters().iter().next().unwrap();
        let delta = v.b().matmul(v.a()).unwrap().t().unwrap();
        let v = (fixed((vocabulary, 4), DType::F64, 1) + delta).unwrap();
        let norms = v.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        let magnitude = of_head.tensor.unsqueeze(1).unwrap();
        let expected = v.broadcast_mul(&(magnitude / norms).unwrap()).unwrap();
        assert_close("head", model.lm_head.weight(), &expected, 1e-12);

        model.merge().unwrap();
        assert_close("merged", &model.forward(&ids()).unwrap(), &out, 1e-12);
        model.unmerge().unwrap();
        let tuned = model.to_base().unwrap();
        assert_close("base", &tuned.forward(&ids()).unwrap(), &out, 1e-12);
        let moved = model.to_device(&Device::Cpu).unwrap();
        assert_close("moved", &moved.forward(&ids()).unwrap(), &out, 1e-12);
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path()).unwrap();
        let mut again = base.with_adapter(dir.path()).unwrap();
        assert_close("loaded", &again.forward(&ids()).unwrap(), &out, 1e-12);
        // Frozen and trained again, it keeps its variable.
        model.set_active(&[]).unwrap();
        assert!(model.trainable_vars().is_empty());
        model.set_active(&["default"]).unwrap();
        let now = find(&model, "lm_head.lora_magnitude_vector.default");
        assert_eq!(now.tensor.id(), of_head.tensor.id());
        again.rename_adapter("default", "other").unwrap();
        assert_close("renamed", &again.forward(&ids()).unwrap(), &out, 1e-12);
        again.delete_adapter("other").unwrap();
        assert_close("deleted", &again.forward(&ids()).unwrap(), &before, 1e-12);
    }
}

/// A further adapter of a tied embedding is merged without ever having acted.
#[test]
fn a_tied_adapter_from_a_file_reaches_the_head() {
    for use_dora in [false, true] {
        let config = LoraConfig::new(2)
            .target_modules(["embed"])
            .ensure_weight_tying(true)
            .use_dora(use_dora)
            .seed(1);
        let base = lm(true, 7, DType::F64);
        let model = base.to_lora(&config).unwrap();
        perturb(&model, 5);
        let out = model.forward(&ids()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path()).unwrap();
        let mut other = base.to_lora(&config.target_modules(["embed"])).unwrap();
        other.set_active(&[]).unwrap();
        other.load_adapter_as("saved", dir.path()).unwrap();
        other.merge_adapters(&["saved"]).unwrap();
        assert_close("merged", &other.forward(&ids()).unwrap(), &out, 1e-12);
    }
}

/// PEFT's target_parameters can name the weight of a linear layer.
#[test]
fn a_linear_layer_is_adapted_by_the_name_of_its_weight() {
    let base = lm(false, 7, DType::F32);
    let by_weight = LoraConfig::new(2)
        .target_parameters(["fc.weight"])
        .rank_pattern(r"fc\.weight", 3)
        .seed(1);
    let model = base.to_lora(&by_weight).unwrap();
    let vars = model.trainable_vars();
    assert_eq!(vars[0].dims(), [3, 4]);
    let by_module = LoraConfig::new(2)
        .target_modules(["fc"])
        .rank_pattern("fc", 3);
    let twin = base.to_lora(&by_module.seed(1)).unwrap();
    for (a, b) in vars.iter().zip(twin.trainable_vars()) {
        assert_eq!(values(a).unwrap(), values(&b).unwrap());
    }
    let both = by_weight.clone().target_modules(["fc"]);
    refused(
        base.to_lora(&both),
        &["target_modules names `fc`, and target_parameters its weight: choose one"],
    );
    let unknown = LoraConfig::new(2).target_parameters(["fc.wait"]);
    refused(base.to_lora(&unknown), &["target_parameters", "fc.wait"]);
}
