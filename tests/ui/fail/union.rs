use lora::LoraModel;

#[derive(LoraModel)]
union Bits {
    float: f32,
    integer: u32,
}

fn main() {}
