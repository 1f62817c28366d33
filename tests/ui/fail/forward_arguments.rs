use lora::LoraModel;

#[derive(LoraModel)]
struct Net<T> {
    fc: T,
}

#[lora::forward(skp(T))]
impl<T> Net<T> {
    fn first(&self) {}
}

#[lora::forward(skip(U), also)]
impl<T> Net<T> {
    fn second(&self) {}
}

#[lora::forward(also(Other), name = "Adapted")]
fn third() {}

#[lora::forward(plain, skip(T))]
impl<T> Net<T> {
    fn fourth(&self) {}
}

fn main() {}
