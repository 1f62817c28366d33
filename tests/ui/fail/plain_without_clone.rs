use lora::LoraModel;

#[derive(Debug, LoraModel)]
enum Pooling {
    Mean,
    Max,
}

fn main() {}
