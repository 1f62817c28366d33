trait Double {}

#[lora::forward]
impl Double for &u8 {}

fn main() {}
