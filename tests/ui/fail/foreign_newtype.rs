use lora::LoraModel;

struct Foreign;

#[derive(LoraModel)]
struct Net(Foreign);

#[derive(LoraModel)]
struct Named {
    foreign: Foreign,
}

fn main() {}
