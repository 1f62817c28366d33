use candle_core::Tensor;
use lora::LoraModel;

#[derive(Clone, LoraModel)]
#[lora(linear, plain, name = "Other", derive(Default), bound = "")]
struct Projection {
    #[lora(rank)]
    weight: Tensor,
    #[lora(skip)]
    bias: Tensor,
    #[lora(skip)]
    name: String,
    #[lora(config)]
    inputs: usize,
}

fn main() {}
