#[lora::forward]
struct Net;

#[lora::forward]
mod forward {}

fn main() {}
