trait Double {}

#[lora::forward]
impl Double for (u8, u8) {}

#[lora::forward]
impl Double for Box<dyn Double> {}

fn main() {}
