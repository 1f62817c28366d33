#[lora::forward]
struct Net;

#[lora::forward]
fn forward() {}

fn main() {}
