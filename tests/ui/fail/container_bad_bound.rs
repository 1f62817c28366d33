use lora::LoraModel;

#[derive(LoraModel)]
#[lora(bound = "T LoraModel")]
struct Net<T> {
    fc: T,
}

fn main() {}
