//! Configurations: what is read, and what is refused.

use candle_nn::Activation;
use lora::models::Task;
use lora::models::encoder::{EncoderConfig, EncoderFamily, Pooling};

fn parse(json: &str) -> Result<EncoderConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn of(kind: &str, more: &str) -> Result<EncoderConfig, String> {
    parse(&format!(r#"{{"model_type": "{kind}"{more}}}"#))
}

#[test]
fn defaults_are_those_of_transformers() {
    for (kind, family, vocabulary, layers, positions, types, pad, inner) in [
        ("bert", EncoderFamily::Bert, 30522, 12, 512, 2, 0, 3072),
        (
            "roberta",
            EncoderFamily::Roberta,
            50265,
            12,
            512,
            2,
            1,
            3072,
        ),
        (
            "xlm-roberta",
            EncoderFamily::Roberta,
            30522,
            12,
            512,
            2,
            1,
            3072,
        ),
        (
            "camembert",
            EncoderFamily::Roberta,
            30522,
            12,
            512,
            2,
            1,
            3072,
        ),
        (
            "distilbert",
            EncoderFamily::Distilbert,
            30522,
            6,
            512,
            0,
            0,
            3072,
        ),
        (
            "modernbert",
            EncoderFamily::Modernbert,
            50368,
            22,
            8192,
            0,
            50283,
            1152,
        ),
    ] {
        let config = of(kind, "").unwrap();
        let found = (
            config.family,
            config.vocab_size,
            config.num_hidden_layers,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.pad_token_id,
            config.intermediate_size,
        );
        let pad = Some(pad);
        assert_eq!(
            found,
            (family, vocabulary, layers, positions, types, pad, inner),
            "{kind}"
        );
        assert_eq!((config.hidden_size, config.num_attention_heads), (768, 12));
        assert_eq!(
            (config.model_type.as_str(), config.task),
            (kind, Task::Features)
        );
        assert_eq!(config.labels, ["LABEL_0", "LABEL_1"]);
        assert_eq!(config.hidden_act, Activation::Gelu);
        assert!(config.tie_word_embeddings && !config.normalize);
        assert!(
            config.without_effect.is_empty(),
            "{:?}",
            config.without_effect
        );
    }
    let modern = of("modernbert", "").unwrap().modern.unwrap();
    assert_eq!(modern.windows[..4], [None, Some(64), Some(64), None]);
    assert_eq!(
        (modern.global_rope_theta, modern.local_rope_theta),
        (160_000.0, 10_000.0)
    );
    assert_eq!(modern.classifier_pooling, Pooling::Cls);
    assert!(modern.decoder_bias && !modern.norm_bias && !modern.classifier_bias);
}

#[test]
fn dropouts_are_read() {
    let all = |config: EncoderConfig| {
        let d = config.dropouts;
        [d.embeddings, d.attention, d.output, d.mlp, d.classifier]
    };
    let bert = r#", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3"#;
    assert_eq!(all(of("bert", bert).unwrap()), [0.2, 0.3, 0.2, 0.2, 0.2]);
    let bert = format!(r#"{bert}, "classifier_dropout": 0.4"#);
    assert_eq!(
        all(of("roberta", &bert).unwrap()),
        [0.2, 0.3, 0.2, 0.2, 0.4]
    );
    let distil = r#", "architectures": ["DistilBertForSequenceClassification"]"#;
    assert_eq!(
        all(of("distilbert", distil).unwrap()),
        [0.1, 0.1, 0.0, 0.1, 0.2]
    );
    let distil = r#", "architectures": ["DistilBertForTokenClassification"]"#;
    assert_eq!(
        all(of("distilbert", distil).unwrap()),
        [0.1, 0.1, 0.0, 0.1, 0.1]
    );
    let modern = r#", "attention_dropout": 0.1, "mlp_dropout": 0.2, "embedding_dropout": 0.3,
        "classifier_dropout": 0.4"#;
    assert_eq!(
        all(of("modernbert", modern).unwrap()),
        [0.3, 0.1, 0.1, 0.2, 0.4]
    );
}

#[test]
fn the_class_tells_task_and_type() {
    for (end, task) in [
        ("Model", Task::Features),
        ("ForSequenceClassification", Task::SequenceClassification),
        ("ForTokenClassification", Task::TokenClassification),
        ("ForMaskedLM", Task::MaskedLm),
    ] {
        for (class, kind) in [("Bert", "bert"), ("XLMRoberta", "xlm-roberta")] {
            let config = parse(&format!(r#"{{"architectures": ["{class}{end}"]}}"#)).unwrap();
            assert_eq!((config.model_type.as_str(), config.task), (kind, task));
        }
    }
    assert_eq!(
        parse("{}").unwrap_err(),
        "`model_type` is missing: encoders are bert, roberta, xlm-roberta, camembert, distilbert, modernbert"
    );
    let error = parse(r#"{"model_type": "llama"}"#).unwrap_err();
    assert!(
        error.starts_with("`model_type` is \"llama\": encoders are bert,"),
        "{error}"
    );
    let other = r#", "architectures": ["BertForQuestionAnswering"]"#;
    assert_eq!(
        of("bert", other).unwrap_err(),
        "`architectures` is [\"BertForQuestionAnswering\"]: supported are Bert{Model, ForSequenceClassification, \
         ForTokenClassification, ForMaskedLM, ForPreTraining}; `Options::task` chooses another task"
    );
}

#[test]
fn labels_come_by_number() {
    let config = of("bert", r#", "id2label": {"1": "b", "0": "a", "10": "k"}"#);
    assert!(
        config
            .unwrap_err()
            .ends_with("the numbers of the classes are to go from 0 on")
    );
    let eleven: Vec<String> = (0..11).rev().map(|i| format!(r#""{i}": "x{i}""#)).collect();
    let config = of(
        "bert",
        &format!(r#", "id2label": {{{}}}"#, eleven.join(", ")),
    )
    .unwrap();
    assert_eq!(config.labels[10], "x10");
    let config = of("bert", r#", "num_labels": 3"#).unwrap();
    assert_eq!(config.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let config = of("bert", r#", "id2label": {"0": "a", "1": "b"}"#).unwrap();
    assert_eq!(config.clone().with_num_labels(2).labels, ["a", "b"]);
    assert_eq!(config.with_num_labels(1).labels, ["LABEL_0"]);
}

#[test]
fn harmless_keys_pass_and_others_are_reported() {
    let config = of(
        "distilbert",
        r#", "torch_dtype": "float32", "tie_weights_": true, "qa_dropout": 0.1, "pruned_heads": {},
            "some_tool": 1, "id2label": null, "is_decoder": false"#,
    );
    assert_eq!(
        config.unwrap().without_effect,
        ["`some_tool` is no setting of this family"]
    );
}

#[test]
fn what_would_change_the_result_is_refused() {
    for (kind, setting, problem) in [
        (
            "bert",
            r#""position_embedding_type": "relative_key_query""#,
            r#"`position_embedding_type` is "relative_key_query": only "absolute" is supported"#,
        ),
        (
            "bert",
            r#""is_decoder": true"#,
            "`is_decoder` is true: only false is supported",
        ),
        (
            "roberta",
            r#""add_cross_attention": true"#,
            "`add_cross_attention` is true: only false is supported",
        ),
        (
            "bert",
            r#""hidden_act": "quick_gelu""#,
            r#"`hidden_act` is "quick_gelu": supported are gelu, gelu_pytorch_tanh, relu, silu"#,
        ),
        (
            "distilbert",
            r#""activation": "tanh""#,
            r#"`activation` is "tanh": supported are gelu, gelu_pytorch_tanh, relu, silu"#,
        ),
        (
            "bert",
            r#""pruned_heads": {"0": [1]}"#,
            r#"`pruned_heads` is {"0":[1]}: only whole, unquantised models are supported"#,
        ),
        (
            "bert",
            r#""num_attention_heads": 5"#,
            "`num_attention_heads` is 5: it must divide the width of 768 (`hidden_size`)",
        ),
        (
            "distilbert",
            r#""n_heads": 5"#,
            "`n_heads` is 5: it must divide the width of 768 (`dim`)",
        ),
        (
            "bert",
            r#""hidden_dropout_prob": 1.0"#,
            "`hidden_dropout_prob` is 1.0: a number from 0 to less than 1 is expected",
        ),
        (
            "bert",
            r#""type_vocab_size": 0"#,
            "`type_vocab_size` is 0: a number from 1 to 1048576 is expected",
        ),
        (
            "bert",
            r#""pad_token_id": 30522"#,
            "`pad_token_id` is 30522: a token below vocab_size, 30522, is expected",
        ),
        (
            "roberta",
            r#""pad_token_id": null"#,
            "`pad_token_id` is null: positions are counted from this token on",
        ),
        (
            "roberta",
            r#""max_position_embeddings": 2"#,
            "`max_position_embeddings` is 2: the positions begin with 2",
        ),
        (
            "modernbert",
            r#""rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 5.0}}"#,
            r#"`rope_parameters.full_attention.rope_type` is "yarn": only "default" is supported"#,
        ),
        (
            "modernbert",
            r#""rope_scaling": {"factor": 2}"#,
            r#"`rope_scaling` is {"factor":2}: only null is supported"#,
        ),
        (
            "modernbert",
            r#""layer_types": ["full_attention"]"#,
            r#"`layer_types` is ["full_attention"]: 22 types are expected, one for each layer"#,
        ),
        (
            "modernbert",
            r#""classifier_pooling": "max""#,
            r#"`classifier_pooling` is "max": supported are cls and mean"#,
        ),
        (
            "modernbert",
            r#""num_attention_heads": 256"#,
            "`num_attention_heads` is 256: heads of 3 numbers cannot turn in pairs",
        ),
    ] {
        assert_eq!(of(kind, &format!(", {setting}")).unwrap_err(), problem);
    }
}
