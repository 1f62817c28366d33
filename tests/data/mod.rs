//! Training data: files, batches, rows.

use candle_core::{DType, Device, Tensor};
use lora::data::{
    BatchOptions, BatchState, Batches, Label, Labelled, NO_LABEL, Pad, Pair, Record, Sequence,
    Side, pack, read_jsonl, split,
};
use lora::ops::{Attention, CrossEntropy};
use lora_tests::assert_close;
use serde::de::DeserializeOwned;
use std::fs;

/// What reading a file with these lines gives; the path in an error is `PATH`.
fn lines<T: DeserializeOwned>(text: impl AsRef<[u8]>) -> Result<Vec<T>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    read_jsonl(&path).map_err(|error| error.to_string().replace(&path, "PATH"))
}

#[test]
fn records_of_each_kind_are_read() {
    let text = "\u{feff}{\"text\": \"a\", \"id\": 7}\r\n\n{\"prompt\": \"p\", \"completion\": \"c\"}\n\
                {\"messages\": [{\"role\": \"user\", \"content\": \"u\", \"x\": 1}], \"prompt\": \"p\", \
                \"tools\": \"[1]\"}";
    let records: Vec<Record> = lines(text).unwrap();
    assert_eq!(records[0], Record::Text("a".into()));
    let completion = |prompt: &str, completion: &str| Record::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    };
    assert_eq!(records[1], completion("p", "c"));
    let Record::Chat(chat) = &records[2] else {
        panic!("{:?}", records[2]);
    };
    assert_eq!(
        (chat.messages[0].role(), chat.messages[0].text()),
        ("user", Some("u"))
    );
    assert_eq!(chat.messages[0].fields()["x"], 1);
    assert_eq!((chat.tools.len(), chat.prompt), (1, 0));

    let text = "{\"text\": \"a\", \"label\": 2}\n{\"text\": \"b\", \"text_pair\": \"c\", \"label\": \"spam\"}\n\
                {\"text\": \"d\", \"label\": 0.5}\n";
    let labelled: Vec<Labelled> = lines(text).unwrap();
    let labels: Vec<&Label> = labelled.iter().map(|record| &record.label).collect();
    assert_eq!(
        labels,
        [
            &Label::Class(2),
            &Label::Name("spam".into()),
            &Label::Number(0.5)
        ]
    );
    assert_eq!(labelled[1].text_pair.as_deref(), Some("c"));

    let text = "{\"anchor\": \"a\", \"positive\": \"b\"}\n{\"query\": \"q\", \"positive\": \"p\", \"negative\": \"n\"}\n\
                {\"sentence1\": \"s\", \"sentence2\": \"t\", \"score\": 0.25}";
    let pairs: Vec<Pair> = lines(text).unwrap();
    assert_eq!(
        (pairs[1].anchor.as_str(), pairs[1].negative.as_deref()),
        ("q", Some("n"))
    );
    assert_eq!(
        (pairs[2].positive.as_str(), pairs[2].score),
        ("t", Some(0.25))
    );
}

#[test]
fn errors_name_file_line_and_key() {
    let text = "{\"text\": \"a\"}\n{\"prompt\": \"p\"}\n{\"completion\": \"c\"}\n{\"txt\": 1}\n[1]\n{\"text\": 1}\n\
                {\"text\": \"a\", \"messages\": []}\n{\"messages\": [{\"content\": \"x\"}]}\n{\"text\": \"a\n";
    let error = lines::<Record>(text).unwrap_err();
    let expected = [
        "PATH:",
        "line 2: `completion` is missing, which goes with `prompt`",
        "line 3: `prompt` is missing, which goes with `completion`",
        "line 4: `text`, or `prompt` and `completion`, or `messages` is missing; the record has `txt`",
        "line 5: a JSON object is expected",
        "line 6: `text`: invalid type: integer `1`, expected a string",
        "line 7: has `text` and `messages`: keep one of these, which the model is to learn",
        "line 8: `messages`: a message has no `role`",
        "line 9: no JSON: EOF while parsing a string, at column 11",
    ];
    assert_eq!(error, expected.join("\n  - "));
    let error = lines::<Labelled>("{\"text\": \"a\"}").unwrap_err();
    assert_eq!(error, "PATH: line 1: missing field `label`");
    let error = lines::<Labelled>("{\"text\": \"a\", \"label\": [1]}").unwrap_err();
    assert!(
        error.contains("a label is a class's number or name, or a number"),
        "{error}"
    );
    let error = lines::<Record>("\n").unwrap_err();
    assert_eq!(
        error,
        "PATH: holds no record: a line of JSON for each is expected"
    );
    let error = lines::<Record>("{}\n".repeat(50)).unwrap_err();
    assert_eq!(error.lines().count(), 12, "{error}");
    let error = lines::<Record>([b'"', 0xff, b'"']).unwrap_err();
    assert!(error.starts_with("PATH: line 1: no JSON: "), "{error}");
    assert!(
        read_jsonl::<Record>("no/such.jsonl")
            .unwrap_err()
            .to_string()
            .starts_with("no/such.jsonl: ")
    );
}

fn lengths() -> Vec<usize> {
    (0..103).map(|index| 5 + (index * 37) % 200).collect()
}

fn epoch(batches: &mut Batches) -> Vec<Vec<usize>> {
    std::iter::from_fn(|| batches.next_batch()).collect()
}

#[test]
fn an_epoch_has_each_example_once_and_little_padding() {
    let mut batches = Batches::new(lengths(), &BatchOptions::new(8).seed(5)).unwrap();
    let (first, second) = (epoch(&mut batches), epoch(&mut batches));
    assert_ne!(first, second);
    assert_eq!(batches.epoch(), 2);
    for epoch in [first, second] {
        assert_eq!(epoch.len(), 13);
        let mut all = epoch.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
    }
    // All are in one window: there is no more padding than if all were sorted.
    let mut sorted = lengths();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let places: usize = sorted.chunks(8).map(|batch| batch[0] * batch.len()).sum();
    let least = 1.0 - sorted.iter().sum::<usize>() as f64 / places as f64;
    assert_eq!(batches.padding_share(), least);
    let random = Batches::new(lengths(), &BatchOptions::new(8).window(1)).unwrap();
    assert!(
        random.padding_share() > 4.0 * least,
        "{}",
        random.padding_share()
    );

    let plain = BatchOptions::new(50).shuffle(false);
    let mut plain = Batches::new(lengths(), &plain).unwrap();
    assert_eq!(epoch(&mut plain).concat(), (0..103).collect::<Vec<_>>());
    let whole = BatchOptions::new(50).drop_last(true);
    let mut whole = Batches::new(lengths(), &whole).unwrap();
    assert_eq!(whole.batches_per_epoch(), 2);
    assert!(epoch(&mut whole).iter().all(|batch| batch.len() == 50));
}

#[test]
fn the_order_goes_on_in_the_middle_of_an_epoch() {
    let options = BatchOptions::new(4).seed(9);
    let mut batches = Batches::new(lengths(), &options).unwrap();
    let mut same = Batches::new(lengths(), &options).unwrap();
    assert_eq!(epoch(&mut same), epoch(&mut batches));
    let mut other = Batches::new(lengths(), &options.clone().seed(10)).unwrap();
    assert_ne!(
        epoch(&mut other),
        epoch(&mut Batches::new(lengths(), &options).unwrap())
    );
    for _ in 0..7 {
        batches.next_batch().unwrap();
    }
    let state = serde_json::to_string(&batches.state()).unwrap();
    let state: BatchState = serde_json::from_str(&state).unwrap();
    let mut later = Batches::resume(lengths(), &state).unwrap();
    for _ in 0..3 {
        assert_eq!(epoch(&mut later), epoch(&mut batches));
    }
    let mut changed = lengths();
    changed[3] += 1;
    let error = Batches::resume(changed, &state).unwrap_err().to_string();
    assert!(
        error.starts_with("the data: the saved state is one of 103 examples"),
        "{error}"
    );
}

#[test]
fn what_makes_no_batch_is_an_error() {
    let error = Batches::new([], &BatchOptions::new(0).window(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the data:\n  - there is no example to make a batch of\n  - the size of a batch is 0: it must be at \
         least 1\n  - the window of batches is 0: it must be at least 1"
    );
    assert!(Batches::new([1, 2], &BatchOptions::new(3).drop_last(true)).is_err());
    assert!(Batches::new([1, 2], &BatchOptions::new(usize::MAX)).is_ok());
}

#[test]
fn rows_are_padded_on_either_side() {
    let rows = [
        &Sequence::new(vec![3, 4, 5]).without_loss(0..2),
        &Sequence::new(vec![6]),
    ];
    let pad = Pad::new(9).side(Side::Left).multiple_of(4);
    let batch = pad.sequences(&rows, &Device::Cpu).unwrap();
    let none = NO_LABEL;
    assert_eq!(
        batch.ids.to_vec2::<u32>().unwrap(),
        [[9, 3, 4, 5], [9, 9, 9, 6]]
    );
    assert_eq!(
        batch.mask.to_vec2::<u8>().unwrap(),
        [[0, 1, 1, 1], [0, 0, 0, 1]]
    );
    assert_eq!(
        batch.labels.to_vec2::<i64>().unwrap(),
        [[none, none, none, 5], [none, none, none, 6]]
    );
    assert_eq!(
        batch.numbers.to_vec2::<u32>().unwrap(),
        [[0, 1, 1, 1], [0, 0, 0, 1]]
    );
    assert_eq!(batch.learned, 1);
    let empty = Pad::new(0).sequences(&[], &Device::Cpu).unwrap();
    assert_eq!(empty.ids.dims(), [0, 0]);
}

/// Packed, each sequence sees what it sees alone, and the labels that count are the same.
#[test]
fn packed_rows_compute_what_their_sequences_do() {
    let sequences: Vec<Sequence> = [4usize, 7, 3, 5, 6, 2]
        .iter()
        .map(|&length| Sequence::new((1..=length as u32).collect()).without_loss(0..2))
        .collect();
    let rows = pack(&sequences, 10).unwrap();
    assert_eq!(rows.len(), 3);
    let learned = |rows: &[Sequence]| rows.iter().map(Sequence::learned).sum::<usize>();
    assert_eq!(learned(&rows), learned(&sequences));
    assert_eq!(rows[0].numbers, [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]);
    let error = pack(&sequences, 6).unwrap_err().to_string();
    assert!(
        error.starts_with("the data: sequence 1 has 7 tokens, a row has 6"),
        "{error}"
    );

    // Attention over tokens' embeddings, and the loss of the next token.
    let table = Tensor::arange(0f64, 80., &Device::Cpu).unwrap();
    let table = table.sin().unwrap().reshape((10, 8)).unwrap();
    let sum = |rows: &[&Sequence]| {
        let batch = Pad::new(0).sequences(rows, &Device::Cpu).unwrap();
        let (rows, time) = batch.ids.dims2().unwrap();
        let x = table.embedding(&batch.ids.flatten_all().unwrap()).unwrap();
        let x = x.reshape((rows, 1, time, 8)).unwrap();
        let attention = Attention::new(1.0).causal().sequences(&batch.numbers);
        let y = attention.forward(&x, &x, &x).unwrap().squeeze(1).unwrap();
        let y = y.narrow(1, 0, time - 1).unwrap().contiguous().unwrap();
        let labels = batch
            .labels
            .narrow(1, 1, time - 1)
            .unwrap()
            .contiguous()
            .unwrap();
        CrossEntropy::new()
            .sum()
            .of_logits(&y, &labels)
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
    };
    let packed = sum(&rows.iter().collect::<Vec<_>>());
    let alone = sequences.iter().map(|sequence| sum(&[sequence]));
    let alone = alone.reduce(|a, b| (a + b).unwrap()).unwrap();
    assert!(alone.to_scalar::<f64>().unwrap() > 1.0);
    assert_close("loss", &packed, &alone, 1e-12);
}

#[test]
fn data_is_held_out_by_a_seed() {
    let items: Vec<u32> = (0..50).collect();
    let (train, held_out) = split(items.clone(), 0.1, 3).unwrap();
    assert_eq!(held_out.len(), 5);
    assert!(train.is_sorted() && held_out.is_sorted());
    assert_eq!(split(items.clone(), 0.1, 3).unwrap().1, held_out);
    assert_ne!(split(items.clone(), 0.1, 4).unwrap().1, held_out);
    assert_eq!(split(vec![1, 2], 0.01, 0).unwrap().1.len(), 1);
    assert_eq!(split(vec![1, 2], 0.0, 0).unwrap().1.len(), 0);
    assert_eq!(
        split(vec![1], 0.5, 0).unwrap().0.len() + split(vec![1], 0.5, 0).unwrap().1.len(),
        1
    );
    let error = split(items, f64::NAN, 0).unwrap_err().to_string();
    assert!(
        error.starts_with("the data: the share that is held out is NaN"),
        "{error}"
    );
}
