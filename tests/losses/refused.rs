//! What the losses and metrics refuse, and how they say so.

use super::LOSSES;
use candle_core::{DType, Device, Result, Tensor};
use lora::losses::{
    CoSent, MultipleNegativesRanking, Reduction, Similarity, Triplet, cosine_similarity, huber, mse,
};
use lora::metrics::{F1, Retrieval, accuracy, pearson, spearman};
use lora_tests::fixed;

#[track_caller]
fn error<T>(result: Result<T>) -> String {
    let text = result.err().expect("it is refused").to_string();
    text.lines().next().unwrap().into()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn empty_batches_are_refused_by_every_loss() {
    for (name, loss) in LOSSES {
        for shape in [[0, 4], [3, 0]] {
            let message = error(loss(&zeros(&shape), &zeros(&shape)));
            let says = message.contains("neither of them 0") || message.contains("no values");
            assert!(says, "{name}: {message}");
        }
        let message = error(loss(&zeros(&[3, 4]), &zeros(&[3, 5])));
        assert!(message.contains("[3, 5]"), "{name}: {message}");
        let ids = Tensor::zeros((3, 4), DType::U32, &Device::Cpu).unwrap();
        let message = error(loss(&ids, &ids));
        assert!(
            message.contains("floating-point, they are U32"),
            "{name}: {message}"
        );
    }
}

#[test]
fn shapes_are_named() {
    let ranking = MultipleNegativesRanking::new();
    let (four, three) = (zeros(&[4, 2]), zeros(&[3, 2]));
    assert_eq!(
        error(ranking.loss(&four, &three, None)),
        "multiple negatives ranking: there are 3 positives, for 4 anchors: each row needs its own"
    );
    assert_eq!(
        error(ranking.loss(&four, &four, Some(&zeros(&[3, 5])))),
        "multiple negatives ranking: the negatives are [3, 5] in F32, the positives [4, 2] in F32: width and \
         dtype must be the same"
    );
    assert_eq!(
        error(ranking.loss(&zeros(&[1, 2]), &zeros(&[1, 2]), None)),
        "multiple negatives ranking: a batch of one pair has nothing to be told apart from: give it more \
         pairs or hard negatives"
    );
    assert_eq!(
        error(ranking.loss(&zeros(&[2]), &four, None)),
        "multiple negatives ranking: the anchors must be (batch, width), neither of them 0, they are [2]"
    );
    assert_eq!(
        error(Triplet::new().loss(&four, &four, &three)),
        "triplet loss: there are 3 negatives, for 4 anchors: each row needs its own"
    );
    assert_eq!(
        error(cosine_similarity(&four, &four, &zeros(&[3]))),
        "cosine similarity: 4 pairs need labels of [4], they are [3]"
    );
    let one = zeros(&[1, 2]);
    assert_eq!(
        error(CoSent::new().loss(&one, &one, &zeros(&[1]))),
        "CoSENT: one pair has no other to be compared with: give it more pairs"
    );
    assert_eq!(
        error(mse(&four, &three, Reduction::Mean)),
        "mean squared error: the predictions are [4, 2], the targets [3, 2]"
    );
    let double = fixed((4, 2), DType::F64, 1);
    assert_eq!(
        error(Similarity::Cosine.matrix(&four, &double)),
        "similarity: the columns are [4, 2] in F64, the rows [4, 2] in F32: width and dtype must be the same"
    );
}

#[test]
fn settings_and_labels_are_named() {
    let four = fixed((4, 2), DType::F32, 1);
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = error(
            MultipleNegativesRanking::new()
                .scale(scale)
                .loss(&four, &four, None),
        );
        assert_eq!(
            message,
            format!("multiple negatives ranking: the scale must be above 0, it is {scale}")
        );
        let message = error(CoSent::new().scale(scale).loss(&four, &four, &zeros(&[4])));
        assert_eq!(
            message,
            format!("CoSENT: the scale must be above 0, it is {scale}")
        );
        let message = error(huber(&four, &four, scale, Reduction::Mean));
        assert_eq!(
            message,
            format!("Huber loss: the delta must be above 0, it is {scale}")
        );
    }
    let message = error(Triplet::new().margin(-0.5).loss(&four, &four, &four));
    assert_eq!(
        message,
        "triplet loss: the margin must be at least 0, it is -0.5"
    );
    let labels = Tensor::new(&[0f32, 1., f32::NAN, 0.], &Device::Cpu).unwrap();
    for message in [
        error(CoSent::new().loss(&four, &four, &labels)),
        error(cosine_similarity(&four, &four, &labels)),
    ] {
        assert!(message.ends_with("the labels must be finite"), "{message}");
    }
}

#[test]
fn metrics_of_nothing_are_refused() {
    let none: [f64; 0] = [];
    assert_eq!(
        error(accuracy(&[1, 2], &[1])),
        "accuracy: two lists of the same length are needed, with at least one value; there are 2 and 1 \
         values"
    );
    for message in [
        error(accuracy(&none, &none)),
        error(F1::of(&none, &none, &1.0)),
        error(F1::macro_mean::<u32>(&[], &[])),
        error(pearson(&none, &none)),
        error(spearman(&[1.0], &none)),
    ] {
        assert!(message.contains("with at least one value"), "{message}");
    }
    let message = error(spearman(&[1.0, f64::NAN], &[1.0, 2.0]));
    assert_eq!(message, "Spearman's correlation: the values must be finite");
    let scores = fixed((2, 3), DType::F32, 1);
    let of = |relevant: &[Vec<usize>]| error(Retrieval::of_scores(&scores, relevant));
    assert_eq!(
        of(&[vec![0]]),
        "retrieval: 2 queries need as many lists of documents, there are 1"
    );
    for wrong in [vec![], vec![3], vec![1, 1]] {
        assert_eq!(
            of(&[vec![0], wrong.clone()]),
            format!(
                "retrieval: query 1 needs documents below 3, at least one and none twice, it has {wrong:?}"
            )
        );
    }
    let scores = Tensor::new(&[[0f32, f32::NAN]], &Device::Cpu).unwrap();
    assert_eq!(
        error(Retrieval::of_scores(&scores, &[vec![0]])),
        "retrieval: the scores of query 0 hold NaN"
    );
    let found = Retrieval::of_scores(&zeros(&[1, 2]), &[vec![0]]).unwrap();
    assert_eq!(error(found.mrr(0)), "retrieval: k must be at least 1");
}
