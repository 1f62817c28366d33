//! The flags of this command in the place of the library's options, which its errors name.

/// What the library calls an option, and the flag for it.
const FLAGS: [(&str, &str); 26] = [
    ("MergeOptions::fan_in_fan_out", "--fan-in-fan-out"),
    ("MergeOptions::keep_tied", "--keep-tied"),
    ("MergeOptions::new_tensors", "--new-tensors"),
    ("MergeOptions::parameter_order", "--parameter-order"),
    ("MergeOptions::rename", "--rename"),
    ("MergeOptions::residual_base", "--residual-base"),
    (
        "MergeOptions::transposed_parameters",
        "--transposed-parameters",
    ),
    ("MergeOptions::untie", "--untie"),
    ("AdapterDir::rename", "--rename"),
    ("peft::merge_checkpoint", "lora merge"),
    ("merge_checkpoint", "lora merge"),
    ("peft::extract", "lora extract"),
    ("peft::import::import", "lora convert"),
    ("peft::import::convert", "lora convert"),
    ("peft::import", "lora convert"),
    ("Options::base", "--base"),
    ("Options::component", "--component"),
    ("Options::modules", "--modules"),
    (
        "`arch` of the options is missing",
        "--arch is missing, and no --base tells it",
    ),
    ("`arch` of the options", "--arch"),
    ("the LoRA configuration does not fit: --arch", "--arch"),
    ("take Cat or Svd", "take --rule cat or --rule svd"),
    (" needs a density", " needs --density"),
    ("svd_rank is", "--rank is"),
    ("svd_clamp", "--clamp"),
    (
        "`heads` of the options",
        "--heads and --kv-heads, or --base",
    ),
];

/// A message of the library's for those who use the command.
pub fn named(message: &str) -> String {
    let replaced = FLAGS.iter();
    replaced.fold(message.into(), |text, (option, flag)| {
        text.replace(option, flag)
    })
}
