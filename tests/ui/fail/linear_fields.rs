use candle_core::Tensor;
use lora::LoraModel;

#[derive(Clone, LoraModel)]
#[lora(linear)]
struct NoWeight {
    ws: Tensor,
}

#[derive(Clone, LoraModel)]
#[lora(linear(weight = w, bias = bs))]
struct NoSuchField {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Clone, LoraModel)]
#[lora(linear(weight = 1))]
struct NoSuchPart(Tensor);

#[derive(Clone, LoraModel)]
#[lora(linear(weight = ws, weight = ws))]
struct Twice {
    ws: Tensor,
}

#[derive(Clone, LoraModel)]
#[lora(linear(wieght = ws))]
struct Unknown {
    ws: Tensor,
}

#[derive(Clone, LoraModel)]
#[lora(linear(weight))]
struct NoValue {
    weight: Tensor,
}

#[derive(Clone, LoraModel)]
#[lora(linear = "weight")]
struct Assigned {
    weight: Tensor,
}

fn main() {}
