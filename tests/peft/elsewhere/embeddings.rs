//! Embeddings beside the matrices: rounded, trained, of a larger vocabulary.

use super::*;

#[test]
fn embeddings_beside_the_matrices() {
    for case in [
        "saved_tied",
        "saved_untied",
        "saved_target",
        "saved_target_untied",
    ] {
        let fixture = fixture(case);
        loads_anywhere::<Lm>(&fixture, &fixture.adapter().into());
    }
}

/// The base in one float type, the file in another.
#[test]
fn embeddings_that_were_rounded() -> Result {
    let types = [DType::F32, DType::F16, DType::BF16];
    for case in ["saved_untied", "saved_target_untied"] {
        let fixture = fixture(case);
        for ours in types {
            for theirs in types {
                let mut files = Files::read(&fixture.adapter());
                let cast = |t: &mut Tensor| *t = t.to_dtype(theirs).unwrap();
                files.weights.0.values_mut().for_each(cast);
                let dir = tempfile::tempdir()?;
                files.write(dir.path());
                let mut base = Weights::read(fixture.dir.join("base.safetensors"));
                let cast = |t: &mut Tensor| *t = t.to_dtype(ours).unwrap();
                base.0.values_mut().for_each(cast);
                let model = Lm::new(&base).with_adapter(dir.path())?;
                let output = model.forward(&fixture.input())?;
                let output = output.to_dtype(DType::F32)?;
                let expected = fixture.io.get("output");
                assert!(error(&output, &expected) <= 5e-2, "{ours:?} {theirs:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn embeddings_that_training_changed() {
    for case in [
        "changed_tied",
        "changed_untied",
        "changed_target",
        "changed_target_tied",
    ] {
        let fixture = fixture(case);
        let words = [
            "differs from the model's own weight",
            "AdapterDir::new(dir).trained_embeddings(true)",
        ];
        refused(
            Lm::new(&fixture.base).with_adapter(fixture.adapter()),
            &words,
        );
        let dir = AdapterDir::new(fixture.adapter()).trained_embeddings(true);
        loads_anywhere::<Lm>(&fixture, &dir);
    }
    // Numbers that are no weights are none for any option.
    let fixture = fixture("changed_untied");
    let mut files = Files::read(&fixture.adapter());
    let head = files
        .weights
        .0
        .get_mut("base_model.model.lm_head.weight")
        .unwrap();
    *head = head.to_dtype(DType::I64).unwrap();
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    let dir = AdapterDir::new(dir.path()).trained_embeddings(true);
    let words = ["`lm_head.weight` is unexpected"];
    refused(Lm::new(&fixture.base).with_adapter(dir), &words);
}

#[test]
fn a_vocabulary_that_grew() {
    for case in [
        "grown_tied",
        "grown_untied",
        "grown_target",
        "grown_saved",
        "grown_tokens_tied",
        "grown_tokens_untied",
    ] {
        let fixture = fixture(case);
        let words = [
            "16 rows, the model's 11",
            "AdapterDir::new(dir).grow_vocabulary(true)",
        ];
        refused(
            Lm::new(&fixture.base).with_adapter(fixture.adapter()),
            &words,
        );
        let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
        let model = Lm::new(&fixture.base).with_adapter(dir.clone()).unwrap();
        gives(&model, &fixture);
        let base = model.to_base().unwrap();
        assert_eq!(base.embed_tokens.embeddings().dims(), [16, 6]);
        let mut model = Lm::new(&fixture.base).to_frozen().unwrap();
        model.load_adapter_as("x", dir).unwrap();
        model.set_active(&["x"]).unwrap();
        model.eval();
        gives(&model, &fixture);
    }
    let fixture = fixture("changed_grown");
    let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
    refused(
        Lm::new(&fixture.base).with_adapter(dir.clone()),
        &["trained_embeddings(true)"],
    );
    gives(
        &Lm::new(&fixture.base)
            .with_adapter(dir.trained_embeddings(true))
            .unwrap(),
        &fixture,
    );
}

#[test]
fn a_vocabulary_grows_under_no_other_adapter() -> Result {
    let fixture = fixture("grown_untied");
    let config = LoraConfig::new(2).target_modules(["embed_tokens"]);
    let mut model = Lm::new(&fixture.base).to_lora(&config)?;
    let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
    refused(
        model.load_adapter_as("x", dir.clone()),
        &["load this adapter first"],
    );
    refused(model.load_adapter(dir), &["with_adapter"]);
    Ok(())
}

/// On disk the options are the same, or `new_tensors`.
#[test]
fn merging_a_vocabulary_that_grew() -> Result {
    for case in [
        "grown_tied",
        "grown_tokens_tied",
        "grown_untied",
        "grown_saved",
        "grown_tokens_untied",
        "changed_untied",
        "changed_grown",
    ] {
        let fixture = fixture(case);
        let temporary = tempfile::tempdir()?;
        let (base, out) = (
            fixture.dir.join("base.safetensors"),
            temporary.path().join("m.safetensors"),
        );
        refused(
            merge_checkpoint(&base, fixture.adapter(), &out),
            &["new_tensors"],
        );
        let options = MergeOptions::new().new_tensors(true);
        merge_checkpoint_with(&base, fixture.adapter(), &out, &options)?;
        let other = temporary.path().join("other.safetensors");
        let dir = AdapterDir::new(fixture.adapter())
            .grow_vocabulary(case.starts_with("grown") || case == "changed_grown")
            .trained_embeddings(case.starts_with("changed"));
        merge_checkpoint(&base, dir, &other)?;
        assert_eq!(std::fs::read(&other)?, std::fs::read(&out)?, "{case}");
        let merged = Weights::read(&out);
        let names: Vec<&String> = merged.0.keys().collect();
        let mut expected = vec!["embed_tokens.weight", "fc.bias", "fc.weight"];
        if !case.ends_with("_tied") {
            expected.push("lm_head.weight");
        }
        assert_eq!(names, expected, "{case}");
        let output = Lm::new(&merged).forward(&fixture.input())?;
        assert!(error(&output, &fixture.io.get("output")) <= 1e-5, "{case}");
    }
    Ok(())
}

/// Names of another kind, which no prefix brings together, have a way through by rules.
#[test]
fn merging_with_rules() -> Result {
    let fixture = Fixture::new("stack");
    let temporary = tempfile::tempdir()?;
    let base = temporary.path().join("base.safetensors");
    let renamed = fixture.base.0.iter().map(|(name, tensor)| {
        let name = name
            .replace("layers.", "encoder.layer.")
            .replace("fc", "mlp.dense");
        (name, tensor.clone())
    });
    candle_core::safetensors::save(&renamed.collect(), &base)?;
    let out = temporary.path().join("out.safetensors");
    let words = ["none of the file's paths", "`encoder.layer.0.mlp.dense1"];
    refused(merge_checkpoint(&base, fixture.adapter(), &out), &words);
    let dir = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("layers.*.fc1", "encoder.layer.*.mlp.dense1")
        .rename("layers.*.fc2", "encoder.layer.*.mlp.dense2");
    merge_checkpoint(&base, dir, &out)?;
    let merged = Weights::read(&out).0.into_iter().map(|(name, tensor)| {
        let name = name
            .replace("encoder.layer.", "layers.")
            .replace("mlp.dense", "fc");
        (name, tensor)
    });
    let output = Stack::new(&Weights(merged.collect())).forward(&fixture.input())?;
    assert!(error(&output, &fixture.io.get("output")) <= 1e-5);
    Ok(())
}

/// A bare list of rows means the input embedding, whatever its name: the weights that PEFT merges.
#[test]
fn a_bare_list_of_rows_on_bert_and_gpt2() -> Result {
    for (case, options) in [
        ("bert_tokens", MergeOptions::new()),
        (
            "gpt2_tokens",
            MergeOptions::new().fan_in_fan_out(true).untie(true),
        ),
    ] {
        let dir = folder(case);
        let temporary = tempfile::tempdir()?;
        let out = temporary.path().join("m.safetensors");
        let base = dir.join("base.safetensors");
        merge_checkpoint_with(&base, dir.join("adapter"), &out, &options)?;
        let config = LoraConfig::from_pretrained(dir.join("adapter"))?;
        let path = match case {
            "bert_tokens" => "embeddings.word_embeddings",
            _ => "transformer.wte",
        };
        assert_eq!(config.trainable_token_indices[path], [1, 5]);
        let (merged, expected) = (
            Weights::read(&out),
            Weights::read(dir.join("merged.safetensors")),
        );
        for (name, tensor) in &expected.0 {
            // The head is the embedding, which is in the file once.
            let name = if name == "lm_head.weight" {
                "transformer.wte.weight"
            } else {
                name
            };
            assert!(error(&merged.get(name), tensor) <= 1e-5, "{case} {name}");
        }
    }
    Ok(())
}
